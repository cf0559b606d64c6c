"""The contract of ``durable.wrap`` with frameworks without an adapter: the same tests for each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from asgi_durable import Durable
from asgi_durable.middleware.asgi import ASGIApp
from support.lifespan import lifespan

KEY = {"Idempotency-Key": "k"}


class Orders:
    """The orders of a shop, which the handlers of all frameworks place."""

    def __init__(self, durable: Durable) -> None:
        self.durable = durable
        self.charged: list[str] = []
        self.tried: list[str] = []

        @durable.step
        async def charge(item: str) -> int:
            self.charged.append(item)
            return len(self.charged)

        self._charge = charge

    async def place(self, item: str) -> dict[str, Any]:
        """Charge for an item; fail after that on the first attempt at a broken one."""
        number = await self._charge(item)
        self.tried.append(item)
        if item == "broken" and self.tried.count(item) == 1:
            raise ConnectionError
        return {"item": item, "number": number}


class FrameworkContract:
    """The tests; a framework's class makes its application.

    The application responds to ``POST /orders/{item}`` with the result of ``Orders.place``.
    """

    # False for a framework that serves nothing before it has had its lifespan.
    works_without_lifespan = True

    def make_app(self, orders: Orders) -> ASGIApp:
        """Return the framework's application."""
        raise NotImplementedError

    @pytest.fixture
    def orders(self, url: str) -> Orders:
        return Orders(Durable(url, drain_timeout=0.0))

    @pytest.fixture(params=["lifespan", "no lifespan"])
    async def client(
        self, request: pytest.FixtureRequest, orders: Orders
    ) -> AsyncIterator[httpx.AsyncClient]:
        has_lifespan = request.param == "lifespan"
        if not (has_lifespan or self.works_without_lifespan):
            pytest.skip("the framework itself needs its lifespan")
        app = orders.durable.wrap(self.make_app(orders))
        async with _client(app, has_lifespan=has_lifespan) as client:
            yield client
        await orders.durable.engine.stop()

    @pytest.mark.anyio
    async def test_a_keyed_request_is_carried_out_once(
        self, client: httpx.AsyncClient, orders: Orders
    ) -> None:
        first, again = [await client.post("/orders/pen", headers=KEY) for _ in range(2)]

        assert first.json() == again.json() == {"item": "pen", "number": 1}
        assert first.status_code == again.status_code
        assert [a.headers.get("idempotent-replayed") for a in (first, again)] == [None, "true"]
        assert orders.charged == ["pen"]

    @pytest.mark.anyio
    async def test_a_retry_goes_on_after_the_last_step(
        self, client: httpx.AsyncClient, orders: Orders
    ) -> None:
        failed, done = [await client.post("/orders/broken", headers=KEY) for _ in range(2)]

        assert failed.status_code == 500
        assert done.json() == {"item": "broken", "number": 1}
        assert (orders.charged, orders.tried) == (["broken"], ["broken"] * 2)

    @pytest.mark.anyio
    async def test_a_request_without_a_key_is_the_frameworks_alone(
        self, client: httpx.AsyncClient, orders: Orders
    ) -> None:
        answers = [await client.post("/orders/pen") for _ in range(2)]
        missing = await client.post("/nowhere", headers={"X-Request-ID": "r1"})

        assert [answer.json()["number"] for answer in answers] == [1, 2]
        assert "durable-id" not in answers[0].headers
        assert (missing.status_code, missing.headers["x-request-id"]) == (404, "r1")


@asynccontextmanager
async def _client(app: ASGIApp, *, has_lifespan: bool) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
        if has_lifespan:
            async with lifespan(app):
                yield client
        else:
            yield client
