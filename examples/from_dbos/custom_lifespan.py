"""A lifespan of the application's own: the engine runs around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from asgi_durable import Durable
from asgi_durable_fastapi import install

resources: dict[str, str] = {}


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Open what the endpoints use, and close it at the end."""
    resources["shop"] = "open"
    yield
    resources.clear()


app = FastAPI(lifespan=lifespan)
durable = Durable()
install(app, durable)


@app.get("/resource")
@durable.workflow
async def use_resource() -> dict[str, str | None]:
    """Use it: work that a restart resumes finds it open as well."""
    return {"resource": resources.get("shop")}
