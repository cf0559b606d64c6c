"""Test clients with and without ``with``: the latter has a new event loop for each request."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import litestar.testing
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from litestar import Litestar
from litestar.handlers import get as litestar_get
from litestar.handlers import post as litestar_post
from starlette import testclient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import asgi_durable_fastapi
import asgi_durable_starlette
from asgi_durable import Durable
from asgi_durable_litestar import DurablePlugin

KEY = {"Idempotency-Key": "k"}

pytestmark = pytest.mark.filterwarnings(r"ignore:\[paths=")


class Shop:
    """The work that the applications of all frameworks do."""

    def __init__(self, durable: Durable) -> None:
        self.durable = durable
        self.sent: list[int] = []

        @durable.transaction
        async def save() -> int:
            session = durable.session
            create = "CREATE TABLE IF NOT EXISTS sales (id INTEGER)"
            await session.execute(sa.text(create))
            await session.execute(sa.text("INSERT INTO sales VALUES (1)"))
            return (await session.execute(sa.text("SELECT count(*) FROM sales"))).scalar_one()

        @durable.step
        async def send(number: int) -> None:
            self.sent.append(number)

        @durable.workflow
        async def deliver(number: int) -> str:
            await send(number)
            return f"delivered {number}"

        self._save, self._deliver = save, deliver

    async def order(self) -> dict[str, Any]:
        number = await self._save()
        handle = await self.durable.start_workflow(self._deliver, number)
        return {"number": number, "delivery": handle.workflow_id}

    async def delivery(self, workflow_id: str) -> dict[str, str]:
        handle = await self.durable.retrieve_workflow(workflow_id)
        return {"result": await handle.get_result(timeout=60)}


def fastapi_app(durable: Durable, shop: Shop) -> Any:
    app = FastAPI()
    asgi_durable_fastapi.install(app, durable)
    app.post("/orders")(shop.order)
    app.get("/deliveries/{workflow_id}")(shop.delivery)
    return app


def starlette_app(durable: Durable, shop: Shop) -> Any:
    async def order(_request: Request) -> Response:
        return JSONResponse(await shop.order())

    async def delivery(request: Request) -> Response:
        return JSONResponse(await shop.delivery(request.path_params["workflow_id"]))

    app = Starlette(
        routes=[
            Route("/orders", order, methods=["POST"]),
            Route("/deliveries/{workflow_id}", delivery),
        ]
    )
    asgi_durable_starlette.install(app, durable)
    return app


def litestar_app(durable: Durable, shop: Shop) -> Any:
    @litestar_post("/orders")
    async def order() -> dict[str, Any]:
        return await shop.order()

    @litestar_get("/deliveries/{workflow_id:str}")
    async def delivery(workflow_id: str) -> dict[str, str]:
        return await shop.delivery(workflow_id)

    return Litestar([order, delivery], plugins=[DurablePlugin(durable)])


FRAMEWORKS: dict[str, tuple[Callable[[Durable, Shop], Any], Callable[[Any], Any]]] = {
    "fastapi": (fastapi_app, testclient.TestClient),
    "starlette": (starlette_app, testclient.TestClient),
    "litestar": (litestar_app, litestar.testing.TestClient),
}


def order_and_follow(client: Any) -> list[Any]:
    """Order twice under one key and once under another; return the numbers and a delivery."""
    keys = (KEY, KEY, {"Idempotency-Key": "other"})
    answers = [client.post("/orders", headers=key).json() for key in keys]
    delivery = client.get(f"/deliveries/{answers[0]['delivery']}").json()["result"]
    return [*(answer["number"] for answer in answers), delivery]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_entered_client_has_everything(database_url: str, framework: str) -> None:
    durable = Durable(database_url)
    shop = Shop(durable)
    make_app, make_client = FRAMEWORKS[framework]

    app = make_app(durable, shop)

    seen = []
    # A test suite enters one application again and again.
    for _ in range(2):
        with make_client(app) as client:
            seen.append(order_and_follow(client))

    assert seen == [[1, 1, 2, "delivered 1"]] * 2
    assert sorted(shop.sent) == [1, 2]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_client_that_is_not_entered_has_everything(database_url: str, framework: str) -> None:
    durable = Durable(database_url)
    shop = Shop(durable)
    make_app, make_client = FRAMEWORKS[framework]

    seen = order_and_follow(make_client(make_app(durable, shop)))
    asyncio.run(durable.engine.stop())

    # A connection that an event loop has left behind would cause a warning now.
    gc.collect()
    assert seen == [1, 1, 2, "delivered 1"]
