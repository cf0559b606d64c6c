"""Decorators in the wrong order: a route that calls the bare function is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from litestar import Controller, Litestar, post
from litestar import Router as LitestarRouter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Host, Mount, Route
from starlette.testclient import TestClient

import asgi_durable_fastapi
import asgi_durable_litestar
import asgi_durable_starlette
from asgi_durable import Durable, DurableUsageError, IdempotencyPolicy
from asgi_durable_litestar import DurablePlugin
from asgi_durable_litestar.handlers import handler_policy

WRONG_ORDER = r"POST /orders calls the bare function of {}.*above @durable\.{}"


@pytest.fixture
def durable(url: str) -> Durable:
    return Durable(url)


def start(app: Any) -> None:
    with TestClient(app):
        pass


@pytest.mark.parametrize("kind", ["workflow", "step", "transaction"])
@pytest.mark.parametrize("in_thread", [False, True])
def test_install_refuses_a_route_that_was_made_first(
    durable: Durable, kind: str, *, in_thread: bool
) -> None:
    app = FastAPI()

    async def order() -> None: ...

    def order_in_thread() -> None: ...

    function = order_in_thread if in_thread else order
    getattr(durable, kind)(app.post("/orders")(function))

    message = WRONG_ORDER.format(f"{kind} '.*{function.__name__}'", kind)
    with pytest.raises(DurableUsageError, match=message):
        asgi_durable_fastapi.install(app, durable)


def _later(app: FastAPI) -> Any:
    return app


def _included(app: FastAPI) -> Any:
    return _Included(app)


class _Included:
    """A router in a router; both are included once the route is there."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self._outer, self._router = app, APIRouter(prefix="/v1"), APIRouter()

    def post(self, path: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            self._router.post(path)(function)
            self._outer.include_router(self._router)
            self._app.include_router(self._outer)
            return function

        return decorate


def _mounted(app: FastAPI) -> Any:
    inner = FastAPI()
    app.mount("/inner", inner)
    return inner


@pytest.mark.parametrize("place", [_later, _included, _mounted])
def test_a_start_refuses_routes_that_were_added_after_install(
    durable: Durable, place: Callable[[FastAPI], Any]
) -> None:
    app = FastAPI()
    asgi_durable_fastapi.install(app, durable)

    @durable.workflow
    @place(app).post("/orders")
    async def order() -> None: ...

    with pytest.raises(DurableUsageError, match="calls the bare function of workflow"):
        start(app)
    # Where no lifespan is sent the first request tells.
    answer = TestClient(app, raise_server_exceptions=False).post("/other")
    assert (answer.status_code, answer.json()["code"]) == (500, "USAGE")


def test_starlette_and_wrapped_apps_are_looked_into_as_well(durable: Durable, url: str) -> None:
    async def order(request: Request) -> Response:
        return JSONResponse({})

    durable.workflow(order)
    route = Route("/orders", order, methods=["POST"])
    host = Host("a.example", Starlette(routes=[route]))
    for routes in ([route], [Mount("/shop", routes=[route])], [host]):
        with pytest.raises(DurableUsageError, match="POST /orders"):
            asgi_durable_starlette.install(Starlette(routes=routes), durable)
        wrapped = Durable(url)
        wrapped.workflow(order)
        with pytest.raises(DurableUsageError, match="POST /orders"):
            start(wrapped.wrap(Starlette(routes=routes)))


def test_litestar_is_looked_into_as_well(durable: Durable) -> None:
    async def order() -> None: ...

    def order_in_thread() -> None: ...

    for handler in (
        post("/orders")(order),
        LitestarRouter("/", route_handlers=[post("/orders", sync_to_thread=True)(order_in_thread)]),
    ):
        durable.workflow(order)
        durable.step(order_in_thread)
        with pytest.raises(DurableUsageError, match=r"/orders calls the bare function of"):
            Litestar([handler], plugins=[DurablePlugin(durable)])


def test_a_handler_of_litestar_is_no_function_to_decorate(durable: Durable) -> None:
    with pytest.raises(DurableUsageError, match="a route goes above"):

        @durable.workflow
        @post("/orders")
        async def order() -> None: ...

    with pytest.raises(DurableUsageError, match="a route goes above"):

        class Orders(Controller):
            @durable.workflow
            @post("/orders")
            async def order(self) -> None: ...


def test_the_right_order_and_functions_of_another_instance_are_served(url: str) -> None:
    app, durable, other = FastAPI(), Durable(url), Durable("sqlite://")
    asgi_durable_fastapi.install(app, durable)

    async def place() -> int:
        return 1

    app.post("/other")(place)
    other.workflow(place)

    async def order() -> int:
        return 2

    app.post("/orders")(durable.workflow(order))

    @app.post("/plain")
    async def plain() -> int:
        return await order()

    with TestClient(app) as client:
        assert [client.post(path).json() for path in ("/other", "/orders", "/plain")] == [1, 2, 2]


def test_the_policy_of_a_handler_counts_on_either_side_of_the_route(durable: Durable) -> None:
    policy = IdempotencyPolicy(required=True)

    @asgi_durable_litestar.idempotent(policy)
    @post("/above")
    async def above() -> None: ...

    @post("/below")
    @asgi_durable_litestar.idempotent(policy)
    async def below() -> None: ...

    app = Litestar([above, below], plugins=[DurablePlugin(durable)])

    for path in ("/above", "/below"):
        handler = next(route for route in app.routes if route.path == path).route_handlers  # type: ignore[union-attr]
        assert policy in [handler_policy(one) for one in handler]
