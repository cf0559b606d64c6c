"""The request id and the rest of the request context."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import replace

import pytest
from support.asgi import answer, exchange, http_scope

from asgi_durable import (
    Durable,
    DurableUsageError,
    RequestContext,
    RequestContextMiddleware,
    Telemetry,
)
from asgi_durable.context import current_request

pytestmark = pytest.mark.anyio


class App:
    """Notes the context it is called in."""

    def __init__(self, headers=()) -> None:
        self.seen: list[RequestContext | None] = []
        self._headers = list(headers)

    async def __call__(self, scope, receive, send) -> None:
        self.seen.append(current_request.get())
        if scope["type"] == "http":
            await answer(send, headers=self._headers)


async def test_a_valid_id_is_taken_over_and_sent_back() -> None:
    app = App()

    result = await exchange(
        RequestContextMiddleware(app), http_scope(headers=[("X-Request-ID", "abc-1.2~/+=:@_")])
    )

    assert result.headers("x-request-id") == ["abc-1.2~/+=:@_"]
    assert app.seen[0] is not None
    assert app.seen[0].request_id == "abc-1.2~/+=:@_"


@pytest.mark.parametrize(
    "sent", ["", "a b", "a\x1b", "x" * 129, "a\r\nset-cookie: b", "é", "{urn:uuid}", "a\x00"]
)
async def test_an_unsafe_id_is_replaced_by_a_uuid_of_version_7(sent: str) -> None:
    result = await exchange(
        RequestContextMiddleware(App()), http_scope(headers=[("X-Request-ID", sent)])
    )

    (made,) = result.headers("x-request-id")
    assert uuid.UUID(made).version == 7


async def test_every_request_without_an_id_gets_its_own() -> None:
    middleware = RequestContextMiddleware(App())

    ids = [(await exchange(middleware, http_scope())).headers("x-request-id") for _ in range(3)]

    assert len({made[0] for made in ids}) == 3


async def test_several_names_are_read_and_the_first_is_sent() -> None:
    middleware = RequestContextMiddleware(App(), header_names=("X-Correlation-ID", "X-Request-ID"))

    result = await exchange(middleware, http_scope(headers=[("x-request-id", "from-proxy")]))

    assert result.headers("x-correlation-id") == ["from-proxy"]


async def test_an_id_that_the_app_set_is_replaced_not_doubled() -> None:
    app = App(headers=[(b"X-Request-Id", b"mine"), (b"x-other", b"kept")])

    result = await exchange(
        RequestContextMiddleware(app), http_scope(headers=[("x-request-id", "real")])
    )

    assert result.headers("x-request-id") == ["real"]
    assert result.headers("x-other") == ["kept"]


async def test_the_context_has_the_request_without_its_secrets() -> None:
    app = App()
    scope = http_scope(
        "PATCH",
        "/orders/1",
        [("host", "user:password@shop.example:8443")],
        query_string=b"token=secret",
        scheme="https",
    )

    await exchange(RequestContextMiddleware(app), scope)

    (seen,) = app.seen
    assert seen is not None
    assert (seen.method, seen.client) == ("PATCH", "127.0.0.1")
    assert seen.url == "https://shop.example:8443/orders/1"


async def test_a_scope_with_the_bare_minimum_will_do() -> None:
    app = App()
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {}}

    await exchange(RequestContextMiddleware(app), scope)

    assert app.seen[0] is not None
    assert app.seen[0].client is None


async def test_the_context_ends_with_the_request() -> None:
    await exchange(RequestContextMiddleware(App()), http_scope())

    assert current_request.get() is None


async def test_a_websocket_has_a_context_and_its_messages_are_untouched() -> None:
    app = App()
    scope = {"type": "websocket", "path": "/ws", "headers": []}

    result = await exchange(RequestContextMiddleware(app), scope)

    assert app.seen[0] is not None
    assert app.seen[0].method == "WEBSOCKET"
    assert result.sent == []


async def test_unknown_scopes_pass() -> None:
    app = App()

    await exchange(RequestContextMiddleware(app), {"type": "something"})

    assert app.seen == [None]


def test_at_least_one_header_must_be_named() -> None:
    with pytest.raises(ValueError, match="header_names"):
        RequestContextMiddleware(App(), header_names=())


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def context_of(*headers: tuple[str, str]) -> RequestContext:
    """Send a request with headers; return what is known of it."""
    app = App()
    await exchange(RequestContextMiddleware(app), http_scope(headers=headers))
    assert app.seen[0] is not None
    return app.seen[0]


async def test_the_trace_of_the_headers_is_reported() -> None:
    states = [("tracestate", "a=1"), ("tracestate", "b=2")]

    request = await context_of(("traceparent", TRACEPARENT), *states)

    assert (request.traceparent, request.tracestate) == (TRACEPARENT, "a=1,b=2")
    assert request.trace_context == f"{TRACEPARENT} a=1,b=2"


async def test_a_trace_needs_no_state_and_a_malformed_one_does_not_count() -> None:
    alone = await context_of(("traceparent", TRACEPARENT))
    malformed = await context_of(("traceparent", TRACEPARENT), ("tracestate", "?"))

    assert alone.trace_context == TRACEPARENT
    assert alone == replace(malformed, request_id=alone.request_id)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("tracestate", "a=1")],
        [("traceparent", "\xe4"), ("tracestate", "a=1")],
        [("traceparent", TRACEPARENT)] * 2,
    ],
)
async def test_without_one_clear_trace_there_is_none(headers: list[tuple[str, str]]) -> None:
    request = await context_of(*headers)

    assert (request.traceparent, request.tracestate, request.trace_context) == (None, None, None)


async def test_the_scope_has_the_context_too() -> None:
    app, scope = App(), http_scope()

    await exchange(RequestContextMiddleware(app), scope)

    assert scope["asgi_durable.request"] is app.seen[0]


async def baggage_of(*headers: str, keys: Iterable[str] = ("tenant", "plan")) -> str | None:
    """Send a request with lines of baggage; return the part that may be recorded."""
    app = App()
    middleware = RequestContextMiddleware(app, baggage_keys=list(keys))
    await exchange(middleware, http_scope(headers=[("Baggage", line) for line in headers]))
    assert app.seen[0] is not None
    return app.seen[0].baggage


async def test_baggage_is_read_where_its_keys_are_named() -> None:
    assert await baggage_of("user=ann, tenant=a%20b ", "plan=pro;ttl=1") == "tenant=a%20b,plan=pro"
    assert await baggage_of("user=ann") is None
    assert await baggage_of() is None
    assert await baggage_of("tenant=a", keys=()) is None


@pytest.mark.parametrize("keys", ["tenant", ["a b"], [""], [1]])
def test_keys_that_are_none_are_refused(keys) -> None:
    with pytest.raises(DurableUsageError, match="baggage"):
        RequestContextMiddleware(App(), baggage_keys=keys)
    with pytest.raises(DurableUsageError, match="baggage"):
        Telemetry(baggage_keys=keys)


@pytest.mark.parametrize("names", ["X-Request-ID", [""], ["X Request"], ["é"], [1]])
def test_names_that_are_no_headers_are_refused(names) -> None:
    with pytest.raises(DurableUsageError, match="header"):
        RequestContextMiddleware(App(), header_names=names)
    with pytest.raises(DurableUsageError, match="header"):
        Durable("sqlite://", request_id_headers=names)
