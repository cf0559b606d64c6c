"""The middlewares alone run on asyncio and on trio."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.asgi import http_scope
from support.telemetry.spans import Spans

from asgi_durable import (
    Durable,
    DurableError,
    IdempotencyMiddleware,
    IdempotencyPolicy,
    LifespanMiddleware,
    ProblemDetailsMiddleware,
    RequestContextMiddleware,
    TracingMiddleware,
)
from asgi_durable.context import current_request
from asgi_durable.middleware.request_bodies.body_source import ReadAheadMiddleware

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class RefusedError(DurableError):
    default_code = "REFUSED"
    default_status = 418


class Service:
    """Takes part in the lifespan, and waits in each phase."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def start(self) -> None:
        await self._note("start")

    async def ensure_started(self) -> None:
        await self._note("ensure_started")

    def recover(self) -> None:
        self.log.append("recover")

    async def drain(self) -> None:
        await self._note("drain")

    async def stop(self) -> None:
        await self._note("stop")

    async def _note(self, name: str) -> None:
        await anyio.sleep(0.001)
        self.log.append(name)


async def call(app: Any, scope: Any = None, body: bytes = b"") -> list[Any]:
    """Send one request; return the messages of the response."""
    sent = []

    async def receive() -> Any:
        await checkpoint()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        await checkpoint()
        sent.append(message)

    with anyio.fail_after(30):
        await app(scope or http_scope(), receive, send)
    return sent


async def echo(scope, receive, send) -> None:
    request = await receive()
    await anyio.sleep(0.001)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": request["body"]})


async def test_each_request_has_its_own_context() -> None:
    ids = {}

    async def app(scope, receive, send) -> None:
        await echo(scope, receive, send)
        ids[scope["path"]] = current_request.get().request_id

    wrapped = RequestContextMiddleware(app)
    sent = {}

    async def one(path: str) -> None:
        sent[path] = await call(
            wrapped, http_scope(path=path, headers=[("X-Request-ID", path[1:])])
        )

    async with anyio.create_task_group() as group:
        for path in ("/a", "/b", "/c"):
            group.start_soon(one, path)

    assert ids == {"/a": "a", "/b": "b", "/c": "c"}
    assert [sent[path][0]["headers"] for path in ids] == [
        [(b"x-request-id", path[1:].encode())] for path in ids
    ]
    assert current_request.get() is None


async def test_an_error_becomes_a_problem_response() -> None:
    async def app(scope, receive, send) -> None:
        await receive()
        msg = "no coffee"
        raise RefusedError(msg)

    start, body = await call(ProblemDetailsMiddleware(app))

    assert (start["status"], json.loads(body["body"])["code"]) == (418, "REFUSED")


async def test_a_request_has_one_span() -> None:
    spans = Spans()
    scope = http_scope(headers=[("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")])

    await call(TracingMiddleware(echo, telemetry=spans.telemetry), scope)

    (span,) = spans.ended
    assert f"{span.context.trace_id:032x}" == TRACE


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[list[str]]:
    """Start an app as a server does, and shut it down after the block."""
    to_app, at_app = anyio.create_memory_object_stream[Any](2)
    to_server, at_server = anyio.create_memory_object_stream[Any](2)
    sent: list[str] = []
    async with anyio.create_task_group() as group, to_app, at_app, to_server, at_server:
        group.start_soon(app, {"type": "lifespan"}, at_app.receive, to_server.send)
        with anyio.fail_after(30):
            await to_app.send({"type": "lifespan.startup"})
            sent.append((await at_server.receive())["type"])
            yield sent
            await to_app.send({"type": "lifespan.shutdown"})
            sent.append((await at_server.receive())["type"])


async def test_the_lifespan_starts_and_stops_the_service() -> None:
    service = Service()

    async def app(scope, receive, send) -> None:
        if scope["type"] == "http":
            await echo(scope, receive, send)
            return
        await receive()
        service.log.append("app starts")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        service.log.append("app stops")
        await send({"type": "lifespan.shutdown.complete"})

    wrapped = LifespanMiddleware(app, service)
    async with lifespan(wrapped) as sent:
        await call(wrapped)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert service.log == [
        *("start", "app starts", "recover", "ensure_started"),
        *("drain", "app stops", "stop"),
    ]


@pytest.mark.parametrize("key", [None, "/id", lambda _scope, _body: None])
@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_request_without_a_key_passes(key, size: int) -> None:
    body = json.dumps({"text": "x" * size}).encode()
    engine = Durable("sqlite://").engine
    app = IdempotencyMiddleware(echo, engine, policy=IdempotencyPolicy(key=key))

    async def lift_limit(_scope, _receive, _send) -> None: ...

    start, answer = await call(ReadAheadMiddleware(app, lift_limit), http_scope("POST"), body)

    assert (start["status"], answer["body"]) == (200, body)


async def test_a_long_body_needs_none_of_the_threads_of_handlers(monkeypatch) -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    monkeypatch.setattr(limiter, "total_tokens", 1)
    body = json.dumps({"text": "x" * 100_000}).encode()
    engine = Durable("sqlite://").engine
    app = IdempotencyMiddleware(echo, engine, policy=IdempotencyPolicy(key="/id"))

    async with limiter:
        start, answer = await call(app, http_scope("POST"), body)

    assert (start["status"], answer["body"]) == (200, body)
