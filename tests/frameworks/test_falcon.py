"""Falcon, with the stack around it."""

from __future__ import annotations

from typing import Any

import pytest
from support.framework_contract import FrameworkContract, Orders

from asgi_durable.middleware.asgi import ASGIApp

falcon_asgi = pytest.importorskip("falcon.asgi")


class TestFalcon(FrameworkContract):
    def make_app(self, orders: Orders) -> ASGIApp:
        class Order:
            async def on_post(self, _request: Any, response: Any, item: str) -> None:
                response.media = await orders.place(item)

        app = falcon_asgi.App()
        app.add_route("/orders/{item}", Order())
        return app
