"""A service of one stream that dies at a chosen place: served for ``test_killed_streams``.

Environment:
    ASGI_DURABLE_URL: The database.
    KILL_POINT_LEDGER: The file that says which places this process has reached.
    KILL_AT: The place to die at; none if it is missing.
    VOICE: The beginning of the events, but for the first one. The first process has a low one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from support.executors import storage_of
from support.processes.kill_points import KillPoints
from support.processes.scripts import event

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import Message, Receive, Scope, Send

WORDS = ("one", "two", "three")

# Its processes are called by their ports, and are one service.
durable = Durable(idempotency=IdempotencyPolicy(stream="record", authority="service.example"))
points = KillPoints(Path(os.environ["KILL_POINT_LEDGER"]), os.environ.get("KILL_AT", ""))
voice = os.environ["VOICE"]
sent = asyncio.Event()


@durable.step(name="think")
async def think(number: int) -> str:
    """Do what takes long."""
    points.reach(f"step {number}")
    return WORDS[number]


async def tell(_: Request) -> StreamingResponse:
    """Tell each thought, in this process's voice."""

    async def thoughts() -> AsyncIterator[bytes]:
        for number in range(len(WORDS)):
            word = await think(number)
            sent.clear()
            yield event(f"{voice if number else ''}{word},")
            if voice == "low ":
                # One commit after the other, whatever the machine is busy with.
                await sent.wait()

    return StreamingResponse(thoughts(), media_type="text/event-stream")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """From now on commits are places to die at."""
    points.watch(storage_of(durable))
    yield


stack = durable.wrap(Starlette(lifespan=lifespan, routes=[Route("/", tell, methods=["POST"])]))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Note which events are on their way to the client."""

    async def noting(message: Message) -> None:
        await send(message)
        if message["type"] == "http.response.body":
            sent.set()

    await stack(scope, receive, noting)
