"""BlackSheep, with the stack around it."""

from __future__ import annotations

from typing import Any

import pytest
from support.framework_contract import FrameworkContract, Orders

from asgi_durable.middleware.asgi import ASGIApp

blacksheep = pytest.importorskip("blacksheep")


class TestBlackSheep(FrameworkContract):
    works_without_lifespan = False

    def make_app(self, orders: Orders) -> ASGIApp:
        app = blacksheep.Application(router=blacksheep.Router())

        @app.router.post("/orders/{item}")
        async def order(item: str) -> Any:
            return blacksheep.json(await orders.place(item))

        return app


class TestBlackSheepWorkflows(FrameworkContract):
    works_without_lifespan = False

    def make_app(self, orders: Orders) -> ASGIApp:
        app = blacksheep.Application(router=blacksheep.Router())

        @app.router.post("/orders/{item}")
        @orders.durable.workflow
        async def order(item: str) -> dict[str, Any]:
            return await orders.place(item)

        return app
