"""One SERVER span for each request, by the stable HTTP conventions."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from support.asgi import answer, exchange, http_scope
from support.telemetry.spans import Spans

from asgi_durable import (
    DurableUsageError,
    RequestContextMiddleware,
    Telemetry,
    TracingMiddleware,
)

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Route:
    path_format = "/orders/{order_id}"


async def ok(scope, receive, send) -> None:
    await answer(send)


def attributes_of(span) -> dict[str, Any]:
    return dict(span.attributes or {})


async def send(spans: Spans, scope, app=ok):
    """Send one request through the middleware; return its span."""
    await exchange(TracingMiddleware(app, telemetry=spans.telemetry), scope)
    (span,) = spans.ended
    return span


async def test_a_span_has_the_attributes_of_the_conventions() -> None:
    spans = Spans()
    headers = [("Host", "shop.example:8080"), ("User-Agent", "curl/8")]

    span = await send(spans, http_scope("GET", "/orders/7", headers))

    assert (span.name, span.kind, span.status.status_code) == (
        "GET",
        SpanKind.SERVER,
        StatusCode.UNSET,
    )
    assert attributes_of(span) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.path": "/orders/7",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "shop.example",
        "server.port": 8080,
        "client.address": "127.0.0.1",
        "user_agent.original": "curl/8",
    }


async def test_the_callers_baggage_is_the_current_one_of_the_request() -> None:
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(dict(baggage.get_all()))
        await answer(send)

    headers = [("traceparent", TRACEPARENT), ("baggage", "tenant=a")]
    token = otel_context.attach(baggage.set_baggage("outer", "b"))
    try:
        span = await send(Spans(), http_scope(headers=headers), app)
    finally:
        otel_context.detach(token)

    assert seen == [{"outer": "b", "tenant": "a"}]
    assert f"{span.get_span_context().trace_id:032x}" == TRACE
    assert dict(baggage.get_all()) == {}


async def test_it_is_named_after_the_route_that_the_framework_has_found() -> None:
    spans = Spans()

    async def app(scope, receive, send) -> None:
        scope["route"] = Route()
        await answer(send)

    span = await send(spans, http_scope("POST", "/shop/orders/7", root_path="/shop"), app)

    assert span.name == "POST /shop/orders/{order_id}"
    assert attributes_of(span)["http.route"] == "/shop/orders/{order_id}"


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("shop.example", "shop.example", 80),
        ("user:secret@shop.example:81", "shop.example", 81),
        ("[::1]:8000", "::1", 8000),
        ("[::1]", "::1", 80),
        ("shop.example:nonsense", "shop.example:nonsense", 80),
    ],
)
async def test_the_host_header_names_the_server(host: str, address: str, port: int) -> None:
    span = await send(Spans(), http_scope(headers=[("Host", host)]))

    named = attributes_of(span)
    assert (named["server.address"], named["server.port"]) == (address, port)


async def test_secrets_of_the_query_are_left_out() -> None:
    query = b"page=2&token=t0p&X-Amz-Signature=abc&empty="

    span = await send(Spans(), http_scope(query_string=query))

    found = attributes_of(span)["url.query"]
    assert found == "page=2&token=REDACTED&X-Amz-Signature=REDACTED&empty="


@pytest.mark.parametrize(
    "name",
    [
        "client_secret",
        "session",
        "jwt",
        "x-api-key",
        "user[password]",
        "user.password",
        "X_API_Key",
    ],
)
async def test_a_secret_is_known_by_its_name_however_it_is_written(name: str) -> None:
    query = urlencode({name: "t0p", "page": "2"}).encode()

    span = await send(Spans(), http_scope(query_string=query))

    found = dict(parse_qsl(str(attributes_of(span)["url.query"])))
    assert found == {name: "REDACTED", "page": "2"}


@pytest.mark.parametrize(
    ("urls", "traced"), [(["/health", "^http://[^/]+/ping$"], ["/orders", "/ping2"]), ([], None)]
)
async def test_excluded_urls_have_no_span(urls: list[str], traced: list[str] | None) -> None:
    paths = ["/health", "/ping", "/orders", "/ping2"]
    spans = Spans(excluded_urls=urls)
    app = TracingMiddleware(ok, telemetry=spans.telemetry)

    for path in paths:
        await exchange(app, http_scope(path=path))

    found = [attributes_of(span)["url.path"] for span in spans.ended]
    assert found == (paths if traced is None else traced)


async def test_the_variable_of_opentelemetry_excludes_urls(monkeypatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", "health, ping")
    spans = Spans()
    app = TracingMiddleware(ok, telemetry=spans.telemetry)

    for path in ("/health", "/ping", "/orders"):
        await exchange(app, http_scope(path=path))

    assert [attributes_of(span)["url.path"] for span in spans.ended] == ["/orders"]


@pytest.mark.parametrize("urls", ["/health", ["("]])
def test_excluded_urls_that_are_no_expressions_are_refused(urls) -> None:
    with pytest.raises(DurableUsageError, match="excluded_urls"):
        Telemetry(excluded_urls=urls)


async def test_a_span_has_the_attributes_of_the_application() -> None:
    def attributes(scope) -> dict[str, str]:
        return {"tenant": scope["tenant"]}

    async def app(scope, receive, send) -> None:
        scope["tenant"] = "a"
        await answer(send)

    span = await send(Spans(request_attributes=attributes), http_scope(), app)

    assert attributes_of(span)["tenant"] == "a"


async def test_a_hook_that_fails_costs_its_attributes_alone(caplog) -> None:
    def attributes(scope) -> dict[str, str]:
        raise LookupError("no tenant")

    span = await send(Spans(request_attributes=attributes), http_scope(path="/orders"))

    assert attributes_of(span)["http.response.status_code"] == 200
    (line,) = [r for r in caplog.records if r.name == "asgi_durable.telemetry.otel.server_spans"]
    assert "/orders" in line.getMessage()
    assert "no tenant" in (line.exc_text or "")


async def test_a_span_ends_after_announced_trailers() -> None:
    spans = Spans()
    ended: list[int] = []

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x"})
        ended.append(len(spans.ended))
        trailers = {"type": "http.response.trailers", "headers": []}
        await send({**trailers, "more_trailers": True})
        ended.append(len(spans.ended))
        await send(trailers)
        ended.append(len(spans.ended))

    await exchange(TracingMiddleware(app, telemetry=spans.telemetry), http_scope())

    assert ended == [0, 0, 1]


async def test_an_unknown_method_does_not_make_a_name() -> None:
    span = await send(Spans(), http_scope("BREW"))

    assert span.name == "HTTP"
    assert attributes_of(span)["http.request.method"] == "_OTHER"
    assert attributes_of(span)["http.request.method_original"] == "BREW"


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [(404, StatusCode.UNSET, None), (500, StatusCode.ERROR, "500"), (503, StatusCode.ERROR, "503")],
)
async def test_only_failures_of_the_server_are_errors(status, code, error) -> None:
    async def app(scope, receive, send) -> None:
        await answer(send, status=status)

    span = await send(Spans(), http_scope(), app)

    assert span.status.status_code is code
    assert attributes_of(span).get("error.type") == error


async def test_an_exception_is_an_error() -> None:
    spans = Spans()

    async def app(scope, receive, send) -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError):
        await send(spans, http_scope(), app)

    (span,) = spans.ended
    assert span.status.status_code is StatusCode.ERROR
    assert attributes_of(span)["error.type"] == "LookupError"
    assert [event.name for event in span.events] == ["exception"]


async def test_a_span_ends_with_the_last_chunk_of_the_response() -> None:
    spans = Spans()
    before: list[int] = []

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        before.append(len(spans.ended))
        await send({"type": "http.response.body", "body": b"2"})
        before.append(len(spans.ended))
        raise LookupError("in a background task")

    with pytest.raises(LookupError):
        await send(spans, http_scope(), app)

    assert before == [0, 1]
    assert spans.ended[0].status.status_code is StatusCode.UNSET


async def test_the_trace_of_the_headers_continues() -> None:
    headers = [("traceparent", TRACEPARENT), ("tracestate", "vendor=1")]

    span = await send(Spans(), http_scope(headers=headers))

    context = span.get_span_context()
    assert f"{context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert (f"{span.parent.span_id:016x}", context.trace_state.to_header()) == (
        "b7ad6b7169203331",
        "vendor=1",
    )


@pytest.mark.parametrize("header", ["", "00-0-0-01", TRACEPARENT.upper() + "x", "\xe4"])
async def test_an_empty_header_begins_a_trace(header: str) -> None:
    span = await send(Spans(), http_scope(headers=[("traceparent", header)]))

    assert span.parent is None


async def test_an_unsampled_trace_of_the_headers_stays_unsampled() -> None:
    spans = Spans()
    scope = http_scope(headers=[("traceparent", TRACEPARENT[:-2] + "00")])

    await exchange(TracingMiddleware(ok, telemetry=spans.telemetry), scope)

    assert spans.ended == []


async def test_a_server_span_that_is_there_is_added_to() -> None:
    spans = Spans()
    seen: list[object] = []

    async def app(scope, receive, send) -> None:
        seen.append(get_current_span())
        await answer(send, status=500)

    stack = RequestContextMiddleware(TracingMiddleware(app, telemetry=spans.telemetry))
    tracer = spans.provider.get_tracer("framework")
    with tracer.start_as_current_span("framework's", kind=SpanKind.SERVER) as outer:
        scope = http_scope(headers=[("X-Request-ID", "r1")], query_string=b"token=t0p")
        await exchange(stack, scope)
        assert seen == [outer]

    (span,) = spans.ended
    assert attributes_of(span) == {
        "durable.request.id": "r1",
        "client.address": "127.0.0.1",
        "url.query": "token=REDACTED",
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_a_span_that_is_no_servers_gets_a_child() -> None:
    spans = Spans()

    with spans.provider.get_tracer("test").start_as_current_span("client"):
        scope = http_scope(headers=[("traceparent", TRACEPARENT)])
        await exchange(TracingMiddleware(ok, telemetry=spans.telemetry), scope)

    assert spans.trees() == [("client", [("GET", [])])]


async def test_other_scopes_pass_through() -> None:
    spans = Spans()
    seen: list[object] = []

    async def app(scope, receive, send) -> None:
        seen.append((scope, receive, send))

    arguments = ({"type": "websocket"}, object(), object())
    await TracingMiddleware(app, telemetry=spans.telemetry)(*arguments)  # type: ignore[arg-type]

    assert seen == [arguments]
    assert spans.ended == []


async def test_the_span_is_current_no_more_afterwards() -> None:
    before = otel_context.get_current()

    await send(Spans(), http_scope())

    assert otel_context.get_current() is before


async def test_without_a_provider_the_app_is_called_as_it_is() -> None:
    seen: list[object] = []

    async def app(scope, receive, send) -> None:
        seen.append((scope, receive, send))

    arguments = (http_scope(), object(), object())
    await TracingMiddleware(app)(*arguments)  # type: ignore[arg-type]

    assert seen == [arguments]


def test_no_sdk_is_loaded_unless_the_application_does() -> None:
    program = """
import asyncio, sys
sys.path.insert(0, 'tests')
import asgi_durable
async def app(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b''})
from support.asgi import exchange, http_scope
durable = asgi_durable.Durable('sqlite://' + sys.argv[1])
result = asyncio.run(exchange(asgi_durable.TracingMiddleware(app), http_scope()))
assert result.status == 200
print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])
"""
    found = subprocess.run(
        [sys.executable, "-c", program, "/x.db"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


async def test_a_provider_that_is_set_during_the_startup_is_found() -> None:
    telemetry = Telemetry()
    middleware = TracingMiddleware(ok, telemetry=telemetry)
    spans = Spans()

    telemetry.tracer_provider = spans.provider
    await exchange(middleware, http_scope())

    assert len(spans.ended) == 1
