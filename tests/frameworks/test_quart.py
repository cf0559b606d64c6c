"""Quart, with the stack around it."""

from __future__ import annotations

from typing import Any

import pytest
from support.framework_contract import FrameworkContract, Orders

from asgi_durable.middleware.asgi import ASGIApp

quart = pytest.importorskip("quart")


class TestQuart(FrameworkContract):
    def make_app(self, orders: Orders) -> ASGIApp:
        app = quart.Quart("shop")

        @app.post("/orders/<item>")
        async def order(item: str) -> dict[str, Any]:
            return await orders.place(item)

        return app


class TestQuartWorkflows(FrameworkContract):
    def make_app(self, orders: Orders) -> ASGIApp:
        app = quart.Quart("shop")

        @app.post("/orders/<item>")
        @orders.durable.workflow
        async def order(item: str) -> dict[str, Any]:
            return await orders.place(item)

        return app
