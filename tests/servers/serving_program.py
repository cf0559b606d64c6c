"""One application for every server: what passes through the stack, and what becomes durable.

``wrapped`` has the whole stack around it; ``toolkit`` the middlewares alone, without the engine's
life. It prints its lifespan. The database is that of ``ASGI_DURABLE_URL``.
"""

from __future__ import annotations

import json
import sys

from support.asgi import answer, read_all
from support.telemetry.spans import Spans

from asgi_durable import (
    Durable,
    DurableError,
    IdempotencyMiddleware,
    ProblemDetailsMiddleware,
    RequestContextMiddleware,
    TracingMiddleware,
)
from asgi_durable.middleware.asgi import Receive, Scope, Send

spans = Spans()
durable = Durable(telemetry=spans.telemetry)
charged: list[str] = []


@durable.step
async def charge(item: str) -> int:
    """Charge for an item; return how many this process has charged for."""
    charged.append(item)
    return len(charged)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve everything that a server sends."""
    if scope["type"] == "lifespan":
        await serve_lifespan(receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    elif scope["path"] == "/refused":
        raise DurableError("not here", code="NOT_HERE", status_code=403)
    elif scope["path"] == "/spans":
        await answer(send, json.dumps([span.name for span in spans.ended]).encode())
    elif scope["path"] == "/orders":
        item = (await read_all(receive)).decode()
        await answer(send, json.dumps([durable.request_id, await charge(item)]).encode())
    else:
        await answer(send, json.dumps([durable.request_id, scope["path"]]).encode())


async def serve_lifespan(receive: Receive, send: Send) -> None:
    """Print when the server starts and stops the application."""
    while True:
        event = (await receive())["type"]
        sys.stdout.write(f"{event}\n")
        sys.stdout.flush()
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


async def echo(receive: Receive, send: Send) -> None:
    """Send each text back, after the request's id."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{durable.request_id} {message['text']}"})


wrapped = durable.wrap(app)
toolkit = RequestContextMiddleware(
    TracingMiddleware(
        IdempotencyMiddleware(ProblemDetailsMiddleware(app), durable.engine),
        telemetry=spans.telemetry,
    )
)
