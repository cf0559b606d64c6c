"""The complete example: orders with a workflow, a transaction and a step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from fastapi import FastAPI
from pydantic import BaseModel

from asgi_durable import Durable, DurableError
from asgi_durable_fastapi import install

durable = Durable()

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
)


@durable.transaction
async def create_tables() -> None:
    """Create the application's table."""
    connection = await durable.session.connection()
    await connection.run_sync(metadata.create_all)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Make ready."""
    await create_tables()
    yield


app = FastAPI(lifespan=lifespan)
install(app, durable)


class Order(BaseModel):
    """A customer's order."""

    user_id: str
    item_id: str
    quantity: int


@app.post("/orders")
@durable.workflow
async def create_order(order: Order) -> dict[str, str]:
    """After a crash the order is finished, once."""
    order_id = await save_order(order)
    await send_confirmation(order.user_id, order_id)
    return {"order_id": order_id, "status": "confirmed"}


@durable.transaction
async def save_order(order: Order) -> str:
    """Insert the order: its row and the record of it commit together."""
    result = await durable.session.execute(
        sa.text(
            "INSERT INTO orders (user_id, item_id, quantity) "
            "VALUES (:user, :item, :quantity) RETURNING id"
        ),
        {"user": order.user_id, "item": order.item_id, "quantity": order.quantity},
    )
    return str(result.scalar_one())


@durable.step
async def send_confirmation(user_id: str, order_id: str) -> None:
    """Send a mail; retried on failure."""
    print(f"Sending confirmation to {user_id} for order {order_id}")  # noqa: T201  stands for a mail


@app.get("/orders/{order_id}")
@durable.transaction
async def get_order(order_id: int) -> dict[str, str]:
    """Read an order."""
    result = await durable.session.execute(
        sa.text("SELECT id, user_id FROM orders WHERE id = :id"), {"id": order_id}
    )
    row = result.one_or_none()
    if row is None:
        message = "Order not found"
        raise DurableError(message, code="ORDER_NOT_FOUND", status_code=404)
    return {"order_id": str(row.id), "user_id": row.user_id}
