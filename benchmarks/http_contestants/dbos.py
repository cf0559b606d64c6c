"""DBOS, which has a workflow with the key as its id instead of keyed requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from dbos import DBOS, SetWorkflowID
from fastapi import FastAPI, Header

from benchmarks.contestants.dbos import config
from benchmarks.http_contestants.bare import Order
from benchmarks.http_contestants.parts import database_url


@asynccontextmanager
async def launched(_: FastAPI) -> AsyncIterator[None]:
    """Start and stop it with the app."""
    DBOS.launch()
    yield
    DBOS.destroy()


def fastapi_two_steps() -> FastAPI:
    """A handler that runs a workflow of two steps."""
    app = FastAPI(lifespan=launched)
    DBOS(config=config(database_url()))

    @DBOS.step()
    async def step(number: int) -> int:
        return number + 1

    @DBOS.workflow()
    async def steps(number: int) -> int:
        return await step(await step(number))

    @app.post("/")
    async def work(order: Order, idempotency_key: Annotated[str, Header()]) -> dict[str, int]:
        with SetWorkflowID(idempotency_key):
            return {"number": await steps(order.number)}

    return app
