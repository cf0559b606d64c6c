"""One SERVER span for each request in every framework, named after its route."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from litestar import Litestar, get
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from support.asgi import exchange, http_scope
from support.spans import Spans

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable
from asgi_durable.middleware.asgi import ASGIApp

pytestmark = pytest.mark.anyio

REQUEST = ("GET", "/shop/orders/7")
ROUTE = "/shop/orders/{order_id}"
QUIET: Any = {"tracing": False, "metrics": False, "logs": False}


async def order(request) -> PlainTextResponse:
    return PlainTextResponse("ok")


def starlette_app(durable: Durable) -> ASGIApp:
    app = Starlette(routes=[Route(ROUTE, order)])
    asgi_durable_starlette.install(app, durable)
    return app


def mounted_app(durable: Durable) -> ASGIApp:
    app = Starlette(routes=[Mount("/shop", routes=[Route("/orders/{order_id}", order)])])
    return durable.wrap(app)


def fastapi_app(durable: Durable) -> ASGIApp:
    return _fastapi(durable, QUIET)


def _fastapi(durable: Durable, telemetry: Any) -> ASGIApp:
    app = FastAPI(telemetry=telemetry)
    router = APIRouter(prefix="/orders")

    @durable.step(name="read")
    async def read(order_id: int) -> int:
        return order_id

    @durable.workflow(name="find")
    async def find(order_id: int) -> int:
        return await read(order_id)

    @router.get("/{order_id}")
    async def find_order(order_id: int) -> int:
        return await find(order_id)

    app.include_router(router, prefix="/shop")
    asgi_durable_fastapi.install(app, durable)
    return app


def litestar_app(durable: Durable) -> ASGIApp:
    @get("/shop/orders/{order_id:int}")
    async def find_order() -> str:
        return "ok"

    return durable.wrap(Litestar([find_order]))  # type: ignore[arg-type]


async def tells_its_route(app: ASGIApp) -> bool:
    """Tell whether a framework leaves the route in the scope; older Starlettes do not."""
    scope = http_scope(*REQUEST)
    await exchange(app, scope)
    return "route" in scope


@pytest.mark.parametrize("new_app", [starlette_app, mounted_app, fastapi_app, litestar_app])
async def test_a_span_is_named_after_the_route(url: str, new_app) -> None:
    is_of_starlette = new_app in (starlette_app, mounted_app)
    if is_of_starlette and not await tells_its_route(Starlette(routes=[Route(ROUTE, order)])):
        pytest.skip("this Starlette does not tell its route")
    spans = Spans()
    durable = Durable(url, telemetry=spans.telemetry)

    async with durable:
        await exchange(new_app(durable), http_scope(*REQUEST))

    (span,) = [span for span in spans.ended if span.kind is SpanKind.SERVER]
    assert span.name == f"GET {ROUTE}"
    assert (span.attributes or {})["http.route"] == ROUTE


@pytest.mark.skipif(
    "telemetry" not in inspect.signature(FastAPI).parameters, reason="this FastAPI opens none"
)
async def test_the_span_that_fastapi_opens_itself_is_added_to(url: str) -> None:
    spans = Spans()
    durable = Durable(url, telemetry=spans.telemetry)
    own = {"tracer_provider": spans.provider, "operation_spans": False, "metrics": False}

    async with durable:
        headers = [("X-Request-ID", "r1")]
        await exchange(_fastapi(durable, own), http_scope(*REQUEST, headers))

    assert spans.trees() == [(f"GET {ROUTE}", [("durable.run find", [("durable.step read", [])])])]
    request = spans.take(f"GET {ROUTE}")
    assert request.instrumentation_scope is not None
    assert request.instrumentation_scope.name == "fastapi"
    assert (request.attributes or {})["durable.request.id"] == "r1"
