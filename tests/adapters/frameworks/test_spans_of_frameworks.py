"""One SERVER span for each request in every framework, named after its route."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from litestar import Litestar, get
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from support.asgi import exchange, http_scope, keyed
from support.telemetry.metrics import Figures
from support.telemetry.spans import Spans, links_of, span_id

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable, DurableUsageError
from asgi_durable.middleware.asgi import ASGIApp
from asgi_durable.middleware.installing.inner_stack import opens_a_span

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
    return installed(_fastapi(durable, QUIET), durable)


def wrapped_fastapi_app(durable: Durable) -> ASGIApp:
    return durable.wrap(_fastapi(durable, QUIET))


def _fastapi(durable: Durable, telemetry: Any) -> FastAPI:
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

    @router.post("/{order_id}")
    async def change_order(order_id: int) -> int:
        return order_id

    app.include_router(router, prefix="/shop")
    return app


def installed(app: FastAPI, durable: Durable) -> ASGIApp:
    asgi_durable_fastapi.install(app, durable)
    return app


def wrapped(app: FastAPI, durable: Durable) -> ASGIApp:
    return durable.wrap(app)


async def wrapped_late(app: FastAPI, durable: Durable) -> ASGIApp:
    """Wrap an application that has served a request already."""
    await exchange(app, http_scope("GET", "/nowhere"))
    return durable.wrap(app)


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


@pytest.mark.parametrize(
    "new_app", [starlette_app, mounted_app, fastapi_app, wrapped_fastapi_app, litestar_app]
)
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


opens_its_own = pytest.mark.skipif(
    "telemetry" not in inspect.signature(FastAPI).parameters, reason="this FastAPI opens none"
)


def own_span(spans: Spans) -> dict[str, Any]:
    """Return FastAPI's settings for a SERVER span of its own, and nothing else."""
    return {"tracer_provider": spans.provider, "operation_spans": False, "metrics": False}


@opens_its_own
@pytest.mark.parametrize("add", [installed, wrapped, wrapped_late])
async def test_the_span_that_fastapi_opens_itself_is_added_to(url: str, add) -> None:
    spans = Spans()
    durable = Durable(url, telemetry=spans.telemetry)
    app = add(_fastapi(durable, own_span(spans)), durable)
    app = await app if inspect.isawaitable(app) else app
    spans.clear()

    async with durable:
        headers = [("X-Request-ID", "r1")]
        await exchange(app, http_scope(*REQUEST, headers))

    assert spans.trees() == [(f"GET {ROUTE}", [("durable.run find", [("durable.step read", [])])])]
    request = spans.take(f"GET {ROUTE}")
    assert request.instrumentation_scope is not None
    assert request.instrumentation_scope.name == "fastapi"
    assert (request.attributes or {})["durable.request.id"] == "r1"


@opens_its_own
@pytest.mark.parametrize("add", [installed, wrapped])
async def test_a_replay_has_the_span_of_fastapi_too(url: str, add) -> None:
    spans = Spans()
    durable = Durable(url, telemetry=spans.telemetry)
    app = add(_fastapi(durable, own_span(spans)), durable)

    async with durable:
        answers = [await exchange(app, keyed(path=REQUEST[1])) for _ in range(2)]

    assert [answer.headers("idempotent-replayed") for answer in answers] == [[], ["true"]]
    # A replay is not led to a route where only the adapter knows the routes.
    replayed = f"POST {ROUTE}" if add is installed else "POST"
    assert spans.trees() == [(f"POST {ROUTE}", []), (replayed, [])]
    outcomes = [(span.attributes or {})["idempotency.outcome"] for span in spans.ended]
    assert outcomes == ["executed", "replayed"]
    assert links_of(spans.ended[1]) == [span_id(spans.ended[0])]


@opens_its_own
@pytest.mark.parametrize("add", [installed, wrapped])
@pytest.mark.parametrize("takes_time", [True, False])
async def test_the_time_of_a_request_is_taken_once(url: str, add, takes_time: bool) -> None:
    figures = Figures()
    durable = Durable(url, telemetry=figures.telemetry)
    own = QUIET | {"metrics": takes_time, "meter_provider": figures.provider}
    app = add(_fastapi(durable, own), durable)

    async with durable:
        await exchange(app, http_scope(*REQUEST))

    ((scope_name, point),) = figures.points("http.server.request.duration")
    assert scope_name == ("fastapi" if takes_time else "asgi_durable")
    assert (point.count, point.attributes["http.route"]) == (1, ROUTE)


@opens_its_own
async def test_a_wrapped_application_itself_does_not_meet_the_stack(url: str) -> None:
    durable = Durable(url, telemetry=Spans().telemetry)
    app = FastAPI(telemetry=QUIET)
    outer = FastAPI(telemetry=QUIET)
    outer.mount("/inner", app)
    inner_stack, stack = durable.wrap(app), durable.wrap(outer)

    async with durable:
        alone = await exchange(app, http_scope())
        mounted = await exchange(stack, http_scope(path="/inner/docs"))
        both = await exchange(inner_stack, http_scope())

    assert alone.headers("x-request-id") == []
    assert len(mounted.headers("x-request-id")) == len(both.headers("x-request-id")) == 1


@opens_its_own
async def test_who_looks_for_a_middleware_of_the_application_finds_it(durable: Durable) -> None:
    app = FastAPI(telemetry=QUIET)
    async with durable:
        await exchange(durable.wrap(app), http_scope())

    found, kinds = app.middleware_stack, []
    while found is not None:
        kinds.append(type(found))
        found = getattr(found, "app", None)
    assert ServerErrorMiddleware in kinds


@opens_its_own
async def test_two_instances_around_one_application_have_their_own_requests(url: str) -> None:
    spans = Spans()
    app = FastAPI(telemetry=QUIET)
    one, two = Durable(url, telemetry=spans.telemetry), Durable(url, request_id_headers=("X-Two",))
    stacks = [one.wrap(app), two.wrap(app)]

    async with one, two:
        answers = [await exchange(stack, http_scope()) for stack in stacks]

    assert [len(answer.headers("x-request-id")) for answer in answers] == [1, 0]
    assert [len(answer.headers("x-two")) for answer in answers] == [0, 1]
    assert len(spans.ended) == 1


@opens_its_own
async def test_middlewares_that_are_built_without_the_stack_are_an_error(durable: Durable) -> None:
    app = FastAPI(telemetry=QUIET)
    build = app.build_middleware_stack
    stack = durable.wrap(app)
    app.middleware_stack = build()

    with pytest.raises(DurableUsageError, match="built anew"):
        await exchange(stack, http_scope())


def test_only_what_opens_a_span_itself_is_served_inside_of_it() -> None:
    class Ours(FastAPI):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more)

    opens = "telemetry" in inspect.signature(FastAPI).parameters
    assert [opens_a_span(app) for app in (FastAPI(), Ours())] == [opens, opens]
    assert not opens_a_span(Starlette())
    assert not opens_a_span(litestar_app)
