"""Applications whose startup fails, for every server; see ``test_failed_startups.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from starlette.applications import Starlette
from support.asgi import answer

from asgi_durable import Durable
from asgi_durable.middleware.asgi import Receive, Scope, Send
from asgi_durable_litestar import DurablePlugin
from asgi_durable_starlette import install


@asynccontextmanager
async def failing(_app: object) -> AsyncIterator[None]:
    """Fail to start."""
    msg = "no such setting"
    raise LookupError(msg)
    yield


async def raising(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail to start, without a message."""
    if scope["type"] == "lifespan":
        await receive()
        msg = "no such setting"
        raise LookupError(msg)
    await answer(send)


installed = Starlette(lifespan=failing)
install(installed, Durable())
wrapped = Durable().wrap(Starlette(lifespan=failing))
raw = Durable().wrap(raising)
plugged = Litestar(plugins=[DurablePlugin(Durable())], lifespan=[failing])
