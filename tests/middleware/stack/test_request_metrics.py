"""How long requests take is recorded once, by the stable HTTP conventions."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    get_current_span,
    use_span,
)
from support.asgi import answer, exchange, http_scope
from support.telemetry.metrics import Figures
from support.telemetry.spans import Spans

from asgi_durable import Telemetry, TracingMiddleware

pytestmark = pytest.mark.anyio

NAME = "http.server.request.duration"
EACH = pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not sampled"])


class Route:
    path_format = "/orders/{order_id}"


async def ok(scope, receive, send) -> None:
    await answer(send)


async def taken(app, scope, *, spans: Spans | None = None) -> dict[tuple[Any, ...], float]:
    """Send one request through the middleware; return how many times were recorded, of what."""
    figures = Figures()
    provider = spans.provider if spans is not None else None
    telemetry = Telemetry(meter_provider=figures.provider, tracer_provider=provider)
    await exchange(TracingMiddleware(app, telemetry=telemetry), scope)
    return figures.read().get(NAME, {})


@pytest.mark.parametrize("spans", [None, Spans()], ids=["no spans", "spans"])
async def test_a_time_has_the_attributes_of_the_conventions(spans: Spans | None) -> None:
    figures = Figures()
    provider = spans.provider if spans is not None else None
    telemetry = Telemetry(meter_provider=figures.provider, tracer_provider=provider)

    async def app(scope, receive, send) -> None:
        scope["route"] = Route()
        await answer(send, status=503)

    await exchange(TracingMiddleware(app, telemetry=telemetry), http_scope("POST", "/orders/7"))

    ((scope_name, point),) = figures.points(NAME)
    assert scope_name == "asgi_durable"
    assert dict(point.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.response.status_code": 503,
        "error.type": "503",
        "http.route": "/orders/{order_id}",
    }
    assert (point.count, list(point.explicit_bounds)) == (1, [
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
    ])  # fmt: skip
    assert 0 < point.sum < 5


async def test_what_succeeded_has_neither_error_nor_unknown_names() -> None:
    assert await taken(ok, http_scope("BREW")) == {("_OTHER", "http", 200): 1}


async def test_an_exception_is_an_error_unless_the_response_was_complete() -> None:
    async def fail(scope, receive, send) -> None:
        raise LookupError("gone")

    async def fail_later(scope, receive, send) -> None:
        await answer(send)
        raise LookupError("in a background task")

    figures = Figures()
    for app in (fail, fail_later):
        middleware = TracingMiddleware(app, telemetry=figures.telemetry)
        with pytest.raises(LookupError):
            await exchange(middleware, http_scope())

    assert figures.read()[NAME] == {
        ("GET", "http", "LookupError"): 1,
        ("GET", "http", 200): 1,
    }


@EACH
async def test_it_is_recorded_whether_the_request_is_sampled_or_not(sampler: Sampler) -> None:
    assert await taken(ok, http_scope(), spans=Spans(sampler)) == {("GET", "http", 200): 1}


async def test_a_trace_that_the_client_does_not_sample_is_no_reason_not_to() -> None:
    headers = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")]

    found = await taken(ok, http_scope(headers=headers), spans=Spans())

    assert found == {("GET", "http", 200): 1}


@EACH
async def test_a_framework_that_opens_the_span_takes_the_time_as_well(sampler: Sampler) -> None:
    tracer = Spans(sampler).provider.get_tracer("framework")

    with tracer.start_as_current_span("framework's", kind=SpanKind.SERVER):
        assert await taken(ok, http_scope()) == {}


async def test_a_client_of_this_process_does_not() -> None:
    tracer = Spans().provider.get_tracer("client")

    with tracer.start_as_current_span("client's", kind=SpanKind.CLIENT) as client:
        seen: list[object] = []

        async def app(scope, receive, send) -> None:
            seen.append(get_current_span())
            await answer(send)

        assert await taken(app, http_scope()) == {("GET", "http", 200): 1}
        # Without a tracer provider there is no other span to be in.
        assert seen == [client]


async def test_the_trace_of_another_process_does_not_count_for_this_one() -> None:
    theirs = SpanContext(1, 2, is_remote=True)

    with use_span(NonRecordingSpan(theirs)):
        assert await taken(ok, http_scope()) == {("GET", "http", 200): 1}


async def test_one_middleware_inside_another_takes_no_second_time() -> None:
    figures = Figures()
    app = TracingMiddleware(ok, telemetry=figures.telemetry)

    await exchange(TracingMiddleware(app, telemetry=figures.telemetry), http_scope())

    assert figures.read()[NAME] == {("GET", "http", 200): 1}
