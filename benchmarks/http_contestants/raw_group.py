"""The limit: a handler that commits a workflow of two steps by hand, and looks at no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from benchmarks.contestants import raw_postgres, raw_sqlite
from benchmarks.http_contestants.bare import Order
from benchmarks.http_contestants.parts import database_url


def fastapi_two_steps() -> FastAPI:
    """On either database."""
    url = database_url()
    raw = raw_sqlite.RawGroup(url) if url.startswith("sqlite") else raw_postgres.RawGroup(url)

    @asynccontextmanager
    async def connected(_: FastAPI) -> AsyncIterator[None]:
        await raw.open()
        yield
        await asyncio.shield(raw.close())

    app = FastAPI(lifespan=connected)

    @app.post("/")
    async def work(order: Order) -> dict[str, int]:
        return {"number": await raw.run(2, order.number)}

    return app
