"""An order service whose requests survive a crash: FastAPI on a SQLite file or on Postgres.

Environment:
    ASGI_DURABLE_URL: The database; ``sqlite:///orders.db`` by default. ``postgresql://…``
        needs the extra ``postgres``.
    ORDERS_OUTBOX: The file that stands for the mail server; ``outbox.txt`` by default.
    ORDERS_DELAY: Seconds that sending a confirmation and each part of a job takes; 0.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import sqlalchemy as sa
from fastapi import FastAPI, Path
from pydantic import BaseModel, Field

from asgi_durable import Durable, DurableError, RetryPolicy
from asgi_durable_fastapi import install

# Servers show their own log alone. This one is the library's too: starts, recoveries, retries.
logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")

OUTBOX = pathlib.Path(os.environ.get("ORDERS_OUTBOX", "outbox.txt"))
DELAY_SECONDS = float(os.environ.get("ORDERS_DELAY", "0"))

durable = Durable(os.environ.get("ASGI_DURABLE_URL", "sqlite:///orders.db"))


class Order(BaseModel):
    """A customer's order."""

    user_id: str
    item_id: str
    quantity: Annotated[int, Field(gt=0, le=1000)]


class Job(BaseModel):
    """Work that takes longer than a request should."""

    parts: Annotated[int, Field(gt=0, le=100)] = 5


metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
)


@durable.transaction
async def create_tables() -> None:
    """Create the application's own table, beside the step log."""
    connection = await durable.session.connection()
    if connection.dialect.name == "postgresql":
        # Several processes may start at once: one after the other, please.
        await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('orders'))"))
    await connection.run_sync(metadata.create_all)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """The application's own start-up code: the engine runs around it."""
    await create_tables()
    yield


app = FastAPI(title="Orders", lifespan=lifespan)
install(app, durable)


@durable.transaction
async def save_order(order: Order) -> str:
    """Insert the order: its row and the step's record commit together."""
    result = await durable.session.execute(
        sa.insert(orders).values(order.model_dump()).returning(orders.c.id)
    )
    return str(result.scalar_one())


@durable.step(retry=RetryPolicy(max_attempts=5))
async def send_confirmation(user_id: str, order_id: str) -> None:
    """Send a mail: here, a line in a file. Retried on failure, never run again once recorded."""
    await asyncio.sleep(DELAY_SECONDS)
    with OUTBOX.open("a") as outbox:
        outbox.write(f"order {order_id} confirmed to {user_id}\n")


@app.post("/orders")
@durable.workflow
async def create_order(order: Order) -> dict[str, str]:
    """A crash at any point: the order is finished after the restart, exactly once."""
    order_id = await save_order(order)
    await send_confirmation(order.user_id, order_id)
    return {"order_id": order_id, "status": "confirmed"}


@app.get("/orders/{order_id}")
@durable.transaction
async def get_order(order_id: Annotated[int, Path(gt=0, lt=2**63)]) -> dict[str, object]:
    """Read an order; outside a keyed request this is a plain transaction."""
    result = await durable.session.execute(sa.select(orders).where(orders.c.id == order_id))
    row = result.mappings().one_or_none()
    if row is None:
        raise DurableError("Order not found", code="ORDER_NOT_FOUND", status_code=404)
    return {**row, "id": str(row["id"])}


@durable.step
async def do_part(number: int) -> int:
    """One part of a job."""
    await asyncio.sleep(DELAY_SECONDS)
    with OUTBOX.open("a") as outbox:
        outbox.write(f"part {number} of job {durable.workflow_id} done\n")
    return number


@durable.workflow
async def process_job(job: Job) -> dict[str, list[int]]:
    """Process a job of several steps; it continues after the last finished one."""
    return {"processed": [await do_part(number) for number in range(job.parts)]}


@app.post("/jobs")
async def create_job(job: Job) -> dict[str, str]:
    """Start a job and respond at once."""
    handle = await durable.start_workflow(process_job, job)
    return {"workflow_id": handle.workflow_id, "status": "started"}


@app.get("/jobs/{workflow_id}")
async def get_job(workflow_id: str) -> dict[str, object]:
    """Tell how a job is doing."""
    handle = await durable.retrieve_workflow(workflow_id)
    status = await handle.get_status()
    return {"workflow_id": workflow_id, "status": status.status, "result": status.output}
