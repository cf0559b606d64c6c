"""Starlette with applications mounted in it, which get no lifespan of their own."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from support.framework_contract import FrameworkContract, Orders

from asgi_durable.middleware.asgi import ASGIApp


def shop(orders: Orders) -> Starlette:
    async def order(request: Request) -> Response:
        return JSONResponse(await orders.place(request.path_params["item"]))

    return Starlette(routes=[Route("/{item}", order, methods=["POST"])])


class TestMounts(FrameworkContract):
    def make_app(self, orders: Orders) -> ASGIApp:
        return Starlette(routes=[Mount("/orders", shop(orders))])


class TestMountsThatAreWrapped(FrameworkContract):
    """The same stack around the mounted application as well."""

    def make_app(self, orders: Orders) -> ASGIApp:
        return Starlette(routes=[Mount("/orders", orders.durable.wrap(shop(orders)))])
