"""Functions of ``@app.middleware("http")`` around keyed requests whose clients leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support.asgi import Exchange, answered, exchange, keyed
from support.executors import until
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp, Message
from asgi_durable_starlette import install

pytestmark = pytest.mark.anyio


class Shop:
    """An application whose middleware passes everything on, and whose handler waits."""

    def __init__(
        self, url: str, place: str, on_disconnect: str = "finish", *, listens: bool = False
    ) -> None:
        self._listens = listens
        policy = IdempotencyPolicy(on_disconnect=on_disconnect)
        self.durable = Durable(url, idempotency=policy)
        self.gate, self.statuses = Gate(), list[int]()
        app = Starlette(routes=[Route("/", self.serve, methods=["POST"])])
        self.app: ASGIApp = app
        if place == "around wrap":
            self.app = BaseHTTPMiddleware(self.durable.wrap(app), dispatch=self.pass_on)
            return
        app.add_middleware(BaseHTTPMiddleware, dispatch=self.pass_on)
        if place == "inside install":
            install(app, self.durable)
        else:
            self.app = self.durable.wrap(app)

    async def pass_on(self, request, call_next):
        response = await call_next(request)
        self.statuses.append(response.status_code)
        return response

    async def serve(self, request) -> PlainTextResponse:
        await request.body()
        listening = asyncio.create_task(request.receive()) if self._listens else None
        await self.gate.wait()
        if listening is not None:
            listening.cancel()
        return PlainTextResponse("done")

    async def post(self) -> Exchange:
        self.gate.open()
        return await exchange(self.app, keyed(), b"order")


PLACES = ["inside install", "inside wrap", "around wrap"]


@pytest.mark.parametrize("place", PLACES)
async def test_a_client_that_leaves_before_its_body_is_whole_is_no_error(
    url: str, place: str
) -> None:
    shop = Shop(url, place)
    messages: Iterator[Message] = iter([{"type": "http.request", "body": b"a", "more_body": True}])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async with shop.durable, asyncio.timeout(60):
        await shop.app(keyed(), receive, Exchange().send)
        retry = await shop.post()

    assert (retry.status, retry.body) == (200, b"done")


@pytest.mark.parametrize("on_disconnect", ["finish", "cancel"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_client_that_leaves_its_handler_is_no_error(
    url: str, place: str, on_disconnect: str
) -> None:
    shop, exchanged = Shop(url, place, on_disconnect), Exchange(b"order")
    async with shop.durable, asyncio.timeout(60):
        call = asyncio.create_task(shop.app(keyed(), exchanged.receive, exchanged.send))
        await shop.gate.reached.wait()
        exchanged.disconnected.set()
        if on_disconnect == "cancel":
            await call
        shop.gate.open()
        await call
        retry = await until(lambda: answered(shop.post))

    assert (retry.status, retry.body) == (200, b"done")
    if on_disconnect == "finish":
        assert retry.headers("idempotent-replayed") == ["true"]


@pytest.mark.parametrize("place", PLACES)
async def test_a_call_whose_handler_listens_for_its_client_ends_without_an_error(
    url: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop, exchanged = Shop(url, place, listens=True), Exchange(b"order")
    async with shop.durable, asyncio.timeout(60):
        call = asyncio.create_task(shop.app(keyed(), exchanged.receive, exchanged.send))
        await shop.gate.reached.wait()
        exchanged.disconnected.set()
        await call
        assert exchanged.sent == []
        retry = await until(lambda: answered(shop.post))

    assert (retry.body, retry.headers("idempotent-replayed")) == (b"done", ["true"])
    assert (exchanged.sent, caplog.records) == ([], [])
