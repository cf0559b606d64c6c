"""A service that does something in the background: served for ``test_background_kill_points``.

Environment:
    ASGI_DURABLE_URL: The database.
    KILL_POINT_LEDGER: The file that says which places this process has reached.
    KILL_AT: The place to die at; none if it is missing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from support.executors import storage_of
from support.processes.kill_points import KillPoints

from asgi_durable import Durable, IdempotencyPolicy

# Its processes are called by their ports, and are one service.
durable = Durable(idempotency=IdempotencyPolicy(authority="service.example"))
points = KillPoints(Path(os.environ["KILL_POINT_LEDGER"]), os.environ.get("KILL_AT", ""))


@durable.step(name="pack")
async def pack(item: str) -> str:
    """Do one thing."""
    return f"packed {item}"


@durable.step(name="notify")
async def send_note(item: str) -> None:
    """Do what is done in the background."""
    points.reach(f"notified of {item}")


@durable.workflow(name="notify")
async def notify(item: str) -> None:
    """Run in the background."""
    await send_note(item)


async def order(request: Request) -> JSONResponse:
    """Start work in the background, and respond."""
    item = (await request.json())["item"]
    await durable.background(notify, item)
    return JSONResponse({"done": await pack(item)}, 201)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """From now on commits are places to die at."""
    points.watch(storage_of(durable))
    yield


app = durable.wrap(Starlette(lifespan=lifespan, routes=[Route("/orders", order, methods=["POST"])]))
