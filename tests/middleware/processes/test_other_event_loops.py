"""Event loops that are not asyncio's: what works there, and what says that it cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from support.asgi import Exchange, answer, http_scope, keyed

from asgi_durable import (
    Durable,
    DurableError,
    DurableUsageError,
    IdempotencyMiddleware,
    ProblemDetailsMiddleware,
    RequestContextMiddleware,
    TracingMiddleware,
    WorkflowHandle,
)
from asgi_durable.middleware.asgi import ASGIApp, Scope

SCOPES = [
    http_scope(),
    http_scope("POST"),
    keyed(method="GET"),
    {"type": "lifespan"},
    {"type": "x"},
]


def run(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run what waits for nothing, without any event loop."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def send_request(app: ASGIApp, scope: Scope) -> Exchange:
    exchange = Exchange()
    run(app(dict(scope), exchange.receive, exchange.send))
    return exchange


async def app(scope, receive, send) -> None:
    if scope.get("path") == "/refused":
        raise DurableError("not here", code="NOT_HERE", status_code=403)
    await answer(send, scope["type"].encode())


@pytest.fixture
def durable(sqlite_url: str) -> Durable:
    return Durable(sqlite_url)


@pytest.fixture
def toolkit(durable: Durable) -> ASGIApp:
    inner = IdempotencyMiddleware(ProblemDetailsMiddleware(app), durable.engine)
    return RequestContextMiddleware(TracingMiddleware(inner))


@pytest.mark.parametrize("scope", SCOPES)
def test_without_a_key_everything_passes(toolkit: ASGIApp, scope: Scope) -> None:
    assert send_request(toolkit, scope).body == scope["type"].encode()


def test_errors_get_a_response(toolkit: ASGIApp) -> None:
    assert send_request(toolkit, http_scope(path="/refused")).status == 403


def test_a_key_gets_an_error_that_the_log_explains(
    toolkit: ASGIApp, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = send_request(toolkit, keyed())

    assert (exchange.status, json.loads(exchange.body)["error"]) == (500, "DurableUsageError")
    assert "need asyncio" in caplog.text


def test_a_start_fails_with_a_sentence(durable: Durable) -> None:
    sent = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message) -> None:
        sent.append(message)

    with pytest.raises(DurableUsageError, match="need asyncio"):
        run(durable.wrap(app)({"type": "lifespan"}, receive, send))

    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "need asyncio" in sent[0]["message"]


@pytest.mark.parametrize("scope", [http_scope(), keyed()])
def test_without_a_lifespan_each_request_gets_an_error(durable: Durable, scope: Scope) -> None:
    exchange = send_request(durable.wrap(app), scope)

    assert (exchange.status, json.loads(exchange.body)["error"]) == (500, "DurableUsageError")


@pytest.fixture
def running(durable: Durable) -> Iterator[Durable]:
    """An instance that was started on asyncio, by requests of another server say."""
    asyncio.run(durable.engine.start())
    yield durable
    asyncio.run(durable.engine.stop())


@pytest.mark.parametrize("scope", [http_scope(), keyed()])
def test_an_app_that_ran_on_asyncio_reports_why_it_cannot_be_called_elsewhere(
    running: Durable, scope: Scope, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = send_request(running.wrap(app), scope)

    assert (exchange.status, json.loads(exchange.body)["error"]) == (500, "DurableUsageError")
    assert "need asyncio" in caplog.text


def test_so_does_a_key_without_the_rest_of_the_stack(
    running: Durable, toolkit: ASGIApp, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = send_request(toolkit, keyed())

    assert (exchange.status, json.loads(exchange.body)["error"]) == (500, "DurableUsageError")
    assert "need asyncio" in caplog.text


def test_so_does_each_durable_call(running: Durable) -> None:
    @running.workflow
    async def work() -> None: ...

    @running.transaction
    async def save() -> None: ...

    handle = WorkflowHandle[None](running.engine, "w")
    for call in (
        work,
        save,
        lambda: running.start_workflow(work),
        lambda: running.sleep(0.0),
        lambda: running.retrieve_workflow("w"),
        lambda: running.cancel_workflow("w"),
        handle.get_status,
        handle.get_result,
    ):
        with pytest.raises(DurableUsageError, match="need asyncio"):
            call().send(None)


@pytest.mark.parametrize("call", [Durable.__aenter__, Durable.migrate])
def test_nothing_is_opened(call, durable: Durable) -> None:
    with pytest.raises(DurableUsageError, match="need asyncio"):
        run(call(durable))
