"""Streams of frameworks, which listen for their clients in their own ways, and clients that go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from support.asgi import Exchange, GoneExchange, answered, exchange, keyed
from support.executors import row_of, until
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp, Scope

pytestmark = pytest.mark.anyio

# Starlette listens for the client until 2.3, and lets `send()` tell since 2.4.
VERSIONS = ["2.3", "2.4"]


def scope_of(version: str) -> Scope:
    return keyed(asgi={"version": "3.0", "spec_version": version})


async def is_finished(url: str, request_id: str) -> bool:
    return await row_of(url, request_id, "state") == ("SUCCESS",)


async def unless_accepted(app: ASGIApp, scope: Scope) -> Exchange | None:
    exchanged = await exchange(app, scope)
    return exchanged if exchanged.status != 202 else None


class Stream:
    """Streams ``ab``, waiting at a gate between the two.

    Attributes:
        ends: How each of its streams ended.
    """

    def __init__(self) -> None:
        self.gate = Gate()
        self.ends: list[str] = []
        self.mails: list[str] = []

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            yield b"a"
            await self.gate.wait()
            yield b"b"
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("whole")

    async def mail(self) -> None:
        self.mails.append("sent")

    def respond(self) -> Response:
        return StreamingResponse(self.pieces(), background=BackgroundTask(self.mail))


def starlette(stream: Stream) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        return stream.respond()

    return Starlette(routes=[Route("/", endpoint, methods=["POST"])])


def behind_function_middleware(stream: Stream) -> ASGIApp:
    """Return an app behind a middleware that runs it in a task of its own."""
    app = FastAPI()

    @app.post("/")
    async def endpoint() -> Response:
        return stream.respond()

    @app.middleware("http")
    async def pass_on(request: Request, call_next) -> Response:
        return await call_next(request)

    return app


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("build", [starlette, behind_function_middleware])
@pytest.mark.parametrize("exchange_class", [Exchange, GoneExchange])
async def test_a_stream_is_cancelled_with_its_client_and_the_retry_is_whole(
    url: str, version: str, build: Callable[[Stream], ASGIApp], exchange_class: type[Exchange]
) -> None:
    policy = IdempotencyPolicy(on_disconnect="cancel", stream_after=0.0)
    durable, stream, exchanged = Durable(url, idempotency=policy), Stream(), exchange_class(b"")
    app = durable.wrap(build(stream))
    async with durable:
        call = asyncio.create_task(app(scope_of(version), exchanged.receive, exchanged.send))
        await exchanged.answer_began.wait()
        await stream.gate.reached.wait()
        exchanged.disconnected.set()
        await call
        stream.gate.open()
        retry = await until(lambda: answered(lambda: exchange(app, scope_of(version))))

    assert exchanged.body == b"a"
    assert (retry.status, retry.body, retry.is_complete) == (200, b"ab", True)
    assert stream.ends == ["cancelled", "whole"]
    assert stream.mails == ["sent"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("build", [starlette, behind_function_middleware])
@pytest.mark.parametrize("exchange_class", [Exchange, GoneExchange])
async def test_a_stream_that_was_begun_is_finished_without_its_client(
    url: str, version: str, build: Callable[[Stream], ASGIApp], exchange_class: type[Exchange]
) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(stream_after=0.0))
    stream, exchanged = Stream(), exchange_class(b"")
    app = durable.wrap(build(stream))
    async with durable:
        call = asyncio.create_task(app(scope_of(version), exchanged.receive, exchanged.send))
        await exchanged.answer_began.wait()
        exchanged.disconnected.set()
        await stream.gate.reached.wait()
        # The disconnect has every chance to be noticed.
        await asyncio.wait([call], timeout=0.1)
        stream.gate.open()
        await call
        retry = await exchange(app, scope_of(version))

    assert (retry.body, retry.headers("idempotent-replayed")) == (b"ab", ["true"])
    assert (stream.ends, stream.mails) == (["whole"], ["sent"])
    # Once is enough to know that it is disconnected.
    assert len(getattr(exchanged, "refused", [])) <= 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_behind_an_accepted_request_is_finished(url: str, version: str) -> None:
    policy = IdempotencyPolicy(stream_after=0.0, async_after=0.0)
    durable, stream, exchanged = Durable(url, idempotency=policy), Stream(), Exchange(b"")

    async def respond(scope, receive, send) -> None:
        # Not before the client got the address of the status.
        await exchanged.answer_began.wait()
        await stream.respond()(scope, receive, send)

    app = durable.wrap(respond)
    async with durable:
        await app(scope_of(version), exchanged.receive, exchanged.send)
        exchanged.disconnected.set()
        await stream.gate.reached.wait()
        await asyncio.sleep(0.1)
        stream.gate.open()
        await until(lambda: is_finished(url, exchanged.headers("durable-id")[0]))
        # The row is there a moment before this process has seen its commit return.
        retry = await until(lambda: unless_accepted(app, scope_of(version)))

    assert (exchanged.status, exchanged.is_complete) == (202, True)
    assert (retry.body, stream.ends) == (b"ab", ["whole"])
