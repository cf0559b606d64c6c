"""An application's lifespan, as a server sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asgi_durable.middleware.asgi import ASGIApp, Message

__all__ = ["lifespan"]

PATIENCE_SECONDS = 60.0


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Start an application, and shut it down after the block."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    serving = asyncio.create_task(_serve(app, scope, to_app, from_app))
    try:
        for kind in ("startup", "shutdown"):
            to_app.put_nowait({"type": f"lifespan.{kind}"})
            async with asyncio.timeout(PATIENCE_SECONDS):
                answer = await from_app.get()
            assert answer["type"] == f"lifespan.{kind}.complete", answer
            if kind == "startup":
                yield
        await serving
    finally:
        serving.cancel()


async def _serve(
    app: ASGIApp, scope: Message, to_app: asyncio.Queue[Message], from_app: asyncio.Queue[Message]
) -> None:
    async def send(message: Message) -> None:
        from_app.put_nowait(message)

    await app(scope, to_app.get, send)
