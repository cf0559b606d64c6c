"""A service whose requests continue without their client: for ``test_recovered_requests``.

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
from support.processes.kill_points import KillPoints

from asgi_durable import Durable, IdempotencyPolicy

durable = Durable(idempotency=IdempotencyPolicy(recover="server", authority="service.example"))
points = KillPoints(Path(os.environ["KILL_POINT_LEDGER"]), os.environ.get("KILL_AT", ""))


@durable.step(name="reserve")
async def reserve(item: str) -> str:
    """Do one thing."""
    points.reach("step reserve")
    return f"reserved {item}"


@durable.step(name="ship")
async def ship(reservation: str) -> str:
    """Do another thing."""
    points.reach("step ship")
    return f"shipped what was {reservation}"


async def order(request: Request) -> JSONResponse:
    """Call two steps; the response is made of their results, and of the request."""
    item = (await request.json())["item"]
    shipment = await ship(await reserve(item))
    points.reach("answer")
    return JSONResponse({"shipment": shipment, "place": request.state.place}, 201)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, str]]:
    """Open what the handler needs."""
    yield {"place": "shop"}


app = durable.wrap(Starlette(lifespan=lifespan, routes=[Route("/orders", order, methods=["POST"])]))
