"""Scopes as the protocol allows them: what is iterable may be read once only."""

from __future__ import annotations

import pytest
from support.asgi import Exchange, answer, http_scope

from asgi_durable import (
    Durable,
    IdempotencyMiddleware,
    RequestContextMiddleware,
    Telemetry,
    TracingMiddleware,
)
from asgi_durable.middleware.asgi import ASGIApp

pytestmark = pytest.mark.anyio


def _context(app: ASGIApp, _durable: Durable) -> ASGIApp:
    return RequestContextMiddleware(app)


def _tracing(app: ASGIApp, _durable: Durable) -> ASGIApp:
    spans = pytest.importorskip("support.telemetry.spans").Spans()
    assert isinstance(spans.telemetry, Telemetry)
    return TracingMiddleware(app, telemetry=spans.telemetry)


def _idempotency(app: ASGIApp, durable: Durable) -> ASGIApp:
    return IdempotencyMiddleware(app, durable.engine)


def _stack(app: ASGIApp, durable: Durable) -> ASGIApp:
    return durable.wrap(app)


@pytest.mark.parametrize("wrap", [_context, _tracing, _idempotency, _stack])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_app_finds_what_its_server_gives_once(durable: Durable, wrap, method) -> None:
    headers, found = [(b"host", b"a.example"), (b"idempotency-key", b"k")], []

    async def app(scope, receive, send) -> None:
        sent = [line for line in scope["headers"] if line[0] != b"x-request-id"]
        found.extend([sent, list(scope["client"]), list(scope["server"])])
        await answer(send)

    scope = http_scope(method, client=iter(("::1", 5)), server=iter(("a.example", 80)))
    scope["headers"] = iter([list(pair) for pair in headers])
    exchanged = Exchange()
    await wrap(app, durable)(scope, exchanged.receive, exchanged.send)

    assert exchanged.status == 200
    assert found == [headers, ["::1", 5], ["a.example", 80]]
