"""Beside OpenTelemetry's own instrumentation and asgi-correlation-id: one span, one request id."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from support.asgi import Exchange, exchange, http_scope, keyed
from support.telemetry.metrics import Figures
from support.telemetry.spans import Spans

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, Telemetry
from asgi_durable.middleware.asgi import ASGIApp

pytestmark = pytest.mark.anyio

QUIET: Any = {"tracing": False, "metrics": False, "logs": False}
ROUTE = "/shop/orders/{order_id}"


def quiet_fastapi(**more: Any) -> FastAPI:
    """Return an application that opens no spans of its own accord."""
    has_own = "telemetry" in inspect.signature(FastAPI).parameters
    return FastAPI(**more, **({"telemetry": QUIET} if has_own else {}))


def shop(durable: Durable, instrument: Callable[[FastAPI], None], when: str) -> FastAPI:
    """Return an application that is instrumented before or after the stack is installed."""
    app = quiet_fastapi()

    @durable.step(name="read")
    async def read() -> int:
        return 1

    @app.post(ROUTE)
    async def order(order_id: int) -> int:
        if order_id == 0:
            raise ZeroDivisionError
        return await read()

    @app.get("/health")
    async def health() -> None: ...

    if when == "before":
        instrument(app)
    asgi_durable_fastapi.install(app, durable)
    if when == "after":
        instrument(app)
    return app


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def instrument(spans: Spans) -> Callable[[FastAPI], None]:
    def instrument(app: FastAPI) -> None:
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=spans.provider,
            excluded_urls="health",
            exclude_spans=["receive", "send"],
        )

    return instrument


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_span_of_the_instrumentation_is_the_only_one_of_a_request(
    url: str, spans: Spans, instrument, when: str
) -> None:
    durable = Durable(url, telemetry=spans.telemetry)
    app = shop(durable, instrument, when)

    async with durable:
        for path in ("/shop/orders/1", "/shop/orders/1", "/shop/orders/2"):
            await exchange(app, keyed("k", path))

    step = ("durable.step read", [])
    assert spans.trees() == [
        (f"POST {ROUTE}", [step]),
        (f"POST {ROUTE}", []),
        (f"POST {ROUTE}", []),
    ]
    outcomes = [
        (span.attributes or {})["idempotency.outcome"]
        for span in spans.ended
        if span.kind is SpanKind.SERVER
    ]
    assert outcomes == ["executed", "replayed", "mismatch"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_the_instrumentation_excludes_has_no_span(
    url: str, spans: Spans, instrument, when: str
) -> None:
    durable = Durable(url, telemetry=spans.telemetry)
    app = shop(durable, instrument, when)

    async with durable:
        answered = await exchange(app, http_scope(path="/health"))

    assert (answered.status, spans.ended) == (200, [])


@pytest.mark.parametrize("when", ["before", "after", "never"])
async def test_an_error_page_has_the_request_id_and_is_sent_once(
    url: str, spans: Spans, instrument, when: str
) -> None:
    durable = Durable(url, telemetry=spans.telemetry)
    app = shop(durable, instrument, when)

    async with durable:
        failed = Exchange()
        with pytest.raises(ZeroDivisionError):
            await app(http_scope("POST", "/shop/orders/0"), failed.receive, failed.send)

    assert (failed.status, failed.is_complete) == (500, True)
    assert len(failed.headers("x-request-id")) == 1


def starlette_shop(durable: Durable) -> ASGIApp:
    async def order(request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    route = Route("/orders/{order_id:int}", order, methods=["POST"])
    app = Starlette(routes=[Mount("/shop", routes=[route])])
    asgi_durable_starlette.install(app, durable)
    return app


def fastapi_shop(durable: Durable) -> ASGIApp:
    return shop(durable, lambda _: None, "never")


@pytest.mark.parametrize("new_app", [starlette_shop, fastapi_shop])
async def test_replays_and_refusals_are_named_after_their_route(url: str, new_app) -> None:
    spans = Spans()
    durable = Durable(url, telemetry=spans.telemetry)
    app = new_app(durable)

    async with durable:
        for key, path in (("k", "1"), ("k", "1"), ("k", "2"), ("", "1"), ("k", "nowhere/1")):
            await exchange(app, keyed(key, f"/shop/orders/{path}"))

    requests = [span for span in spans.ended if span.kind is SpanKind.SERVER]
    assert [span.name for span in requests] == [*[f"POST {ROUTE}"] * 4, "POST"]
    routes = [(span.attributes or {}).get("http.route") for span in requests]
    assert routes == [*[ROUTE] * 4, None]


async def test_the_time_of_a_replay_is_that_of_its_route(url: str) -> None:
    figures = Figures()
    durable = Durable(url, telemetry=figures.telemetry)
    app = starlette_shop(durable)

    async with durable:
        for _ in range(2):
            await exchange(app, keyed("k", "/shop/orders/1"))

    ((_, point),) = figures.points("http.server.request.duration")
    assert (point.count, point.attributes["http.route"]) == (2, ROUTE)


@pytest.mark.parametrize("given", [None, "4b1c9a0e5f9d4c6f8a7b6c5d4e3f2a1b"])
@pytest.mark.parametrize("is_around", [True, False])
async def test_asgi_correlation_id_has_the_same_id(
    url: str, given: str | None, *, is_around: bool
) -> None:
    durable = Durable(url)
    app = FastAPI()

    @app.get("/")
    async def ids() -> list[str | None]:
        return [correlation_id.get(), durable.request_id]

    asgi_durable_fastapi.install(app, durable)
    served: ASGIApp = app
    if is_around:
        served = CorrelationIdMiddleware(app)
    else:
        app.add_middleware(CorrelationIdMiddleware)
    headers = [("X-Request-ID", given)] if given is not None else []

    async with durable:
        answered = await exchange(served, http_scope(headers=headers))

    theirs, ours = json.loads(answered.body)
    assert theirs == ours
    assert given in (None, ours)
    assert set(answered.headers("x-request-id")) == {ours}


def test_a_startup_that_fails_is_not_hidden_by_exporters(url: str) -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise OSError("no mail server")
        yield

    endpoint = "http://127.0.0.1:9/v1/traces"  # nobody listens there
    durable = Durable(url, telemetry=Telemetry(otlp_traces_endpoints=[endpoint]))
    app = quiet_fastapi(lifespan=lifespan)
    asgi_durable_fastapi.install(app, durable)

    with pytest.raises(OSError, match="no mail server"), TestClient(app):
        pass
