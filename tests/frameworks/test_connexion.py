"""Connexion, with the stack around it: handlers by the operations of a document."""

from __future__ import annotations

from typing import Any

import pytest
from support.framework_contract import FrameworkContract, Orders

from asgi_durable.middleware.asgi import ASGIApp

connexion = pytest.importorskip("connexion")

ITEM = {"name": "item", "in": "path", "required": True, "schema": {"type": "string"}}
DOCUMENT = {
    "openapi": "3.0.0",
    "info": {"title": "shop", "version": "1"},
    "paths": {
        "/orders/{item}": {
            "post": {
                "operationId": "order",
                "parameters": [ITEM],
                "responses": {"200": {"description": "done"}},
            }
        }
    },
}


def connexion_app(handler: Any) -> ASGIApp:
    app = connexion.AsyncApp("shop")
    app.add_api(DOCUMENT, resolver=connexion.resolver.Resolver(lambda _operation: handler))
    return app


class TestConnexion(FrameworkContract):
    def make_app(self, orders: Orders) -> ASGIApp:
        async def order(item: str) -> Any:
            return await orders.place(item)

        return connexion_app(order)


class TestConnexionWorkflows(FrameworkContract):
    def make_app(self, orders: Orders) -> ASGIApp:
        @orders.durable.workflow
        async def order(item: str) -> dict[str, Any]:
            return await orders.place(item)

        return connexion_app(order)
