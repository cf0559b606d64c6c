"""A plain function around which there is no framework."""

from __future__ import annotations

import json

from support.asgi import answer
from support.framework_contract import FrameworkContract, Orders

from asgi_durable.middleware.asgi import ASGIApp, Receive, Scope, Send


class TestRawASGI(FrameworkContract):
    def make_app(self, orders: Orders) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            assert scope["type"] == "http"
            folder, _, item = scope["path"].strip("/").partition("/")
            if folder == "orders":
                await answer(send, json.dumps(await orders.place(item)).encode())
            else:
                await answer(send, b"missing", status=404)

        return app
