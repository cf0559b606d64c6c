"""The bare apps, raw and FastAPI, that middlewares are put around."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.http_contestants.parts import ASGIApp

__all__ = ["Order", "answer", "fastapi", "raw"]

BODY = b'{"number":2}'
STATUS, HEADERS = (
    200,
    [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
)


class Order(BaseModel):
    """The JSON body of the requests."""

    number: int


async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Respond to every request, as the raw app of all others."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    # A copy: middlewares add headers.
    await send({"type": "http.response.start", "status": STATUS, "headers": HEADERS.copy()})
    await send({"type": "http.response.body", "body": BODY})


def raw() -> ASGIApp:
    """No framework."""
    return answer


def fastapi() -> FastAPI:
    """A route with a body that is checked."""
    app = FastAPI()

    @app.post("/")
    async def work(order: Order) -> dict[str, int]:
        return {"number": order.number + 2}

    return app
