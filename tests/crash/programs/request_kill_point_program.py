"""A service that dies at a chosen place: served for ``test_request_kill_points``.

Environment:
    ASGI_DURABLE_URL: The database.
    KILL_POINT_LEDGER: The file that says which places this process has reached.
    KILL_AT: The place to die at; none if it is missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from support.executors import storage_of
from support.processes.kill_points import KillPoints

from asgi_durable import Durable, IdempotencyPolicy

# Its processes are called by their ports, and are one service.
NAMED = IdempotencyPolicy(authority="service.example")
UPLOAD = replace(NAMED, oversize="hash", max_request_body=1024)

SALE = replace(NAMED, single_transaction=True)

durable = Durable(
    idempotency=NAMED, idempotency_routes={"POST /uploads": UPLOAD, "POST /sales": SALE}
)
points = KillPoints(Path(os.environ["KILL_POINT_LEDGER"]), os.environ.get("KILL_AT", ""))


@durable.step(name="reserve")
async def reserve(item: str) -> str:
    """Do one thing."""
    points.reach("step reserve")
    return f"reserved {item}"


@durable.transaction(name="insert")
async def insert(item: str) -> int:
    """Insert a row; nothing but the library keeps it from being inserted twice."""
    points.reach("step insert")
    await durable.session.execute(sa.text("INSERT INTO effects VALUES (:item)"), {"item": item})
    return len(item)


@durable.step(name="ship")
async def ship(reservation: str) -> str:
    """Do another thing."""
    points.reach("step ship")
    return f"shipped what was {reservation}"


async def order(request: Request) -> JSONResponse:
    """Call two steps and a transaction; the response is made of their results."""
    item = (await request.json())["item"]
    reservation = await reserve(item)
    number = await insert(item)
    done = {"number": number, "reservation": reservation, "shipment": await ship(reservation)}
    answer = JSONResponse(done, 201, headers={"Location": f"/orders/{number}"})
    for relation in ("self", "next"):
        answer.headers.append("Link", f'</orders/{number}>; rel="{relation}"')
    return answer


async def sell(request: Request) -> JSONResponse:
    """Call a transaction alone, which the response is committed with."""
    item = (await request.json())["item"]
    points.reach("step before the sale")
    number = await insert(item)
    points.reach("step after the sale")
    return JSONResponse({"number": number}, 201, headers={"Location": f"/sales/{number}"})


async def upload(request: Request) -> JSONResponse:
    """Call a step before a long body has come, and a transaction and a step after it."""
    reservation = await reserve("a place for it")
    size, digest, half = 0, hashlib.sha256(), int(request.headers["content-length"]) // 2
    async for piece in request.stream():
        if size <= half < size + len(piece):
            points.reach("step half of the body")
        size += len(piece)
        digest.update(piece)
    await insert(digest.hexdigest())
    done = {"size": size, "shipment": await ship(reservation)}
    return JSONResponse(done, 201, headers={"Location": f"/uploads/{digest.hexdigest()}"})


@durable.transaction
async def create_table() -> None:
    """Create the application's table."""
    await durable.session.execute(sa.text("CREATE TABLE IF NOT EXISTS effects (item TEXT)"))


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Create the table at the start; from then on commits are places to die at."""
    await create_table()
    points.watch(storage_of(durable))
    yield


routes = [
    Route("/orders", order, methods=["POST"]),
    Route("/sales", sell, methods=["POST"]),
    Route("/uploads", upload, methods=["POST"]),
]
app = durable.wrap(Starlette(lifespan=lifespan, routes=routes))
