"""Stacked decorators: a route's function is a workflow, a step or a transaction."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import FastAPI

from asgi_durable import Durable
from asgi_durable_fastapi import install

app = FastAPI()
durable = Durable()
install(app, durable)


@app.get("/process/{item_id}")
@durable.workflow
async def process_item(item_id: str) -> dict[str, str]:
    """The whole endpoint is a durable workflow."""
    result = await process(item_id)
    await notify(item_id, result)
    return {"item_id": item_id, "result": result}


@app.post("/convert/{item_id}")
@durable.step
async def process(item_id: str) -> str:
    """The endpoint is a step: a plain call, and recorded where its request has a key."""
    return item_id.upper()


@durable.step
async def notify(item_id: str, result: str) -> None:
    """Tell somebody."""
    print(f"{item_id} became {result}")  # noqa: T201  stands for a message


@app.post("/visits/{page}")
@durable.transaction
async def count_visit(page: str) -> int:
    """The endpoint is a transaction: under a key it happens exactly once."""
    session = durable.session
    await session.execute(sa.text("CREATE TABLE IF NOT EXISTS visits (page TEXT)"))
    await session.execute(sa.text("INSERT INTO visits VALUES (:page)"), {"page": page})
    count = await session.execute(
        sa.text("SELECT count(*) FROM visits WHERE page = :page"), {"page": page}
    )
    return int(count.scalar_one())
