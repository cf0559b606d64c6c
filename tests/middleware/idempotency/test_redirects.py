"""Requests that an app redirects to another path: their keys stay free for that one."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.asgi import Exchange, answer, exchange, keyed, read_all
from support.executors import query
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy

pytestmark = pytest.mark.anyio

LONG = [b"x" * 700] * 5


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Shop:
    """An application that takes orders at ``/orders/``, and redirects those at ``/orders``.

    Attributes:
        calls: The paths of its calls.
        status: Of the redirect.
        gate: Where it waits before the redirect.
        records: True to record a step before that.
        fails: How many orders fail.
    """

    def __init__(self, url: str, **policy) -> None:
        self.durable = Durable(url, idempotency=IdempotencyPolicy(**policy), drain_timeout=0.0)
        self._app = self.durable.wrap(self._serve)
        self._step = self.durable.step(self._note)
        self.calls: list[str] = []
        self.status = 307
        self.gate = Gate()
        self.gate.open()
        self.records = False
        self.fails = 0

    async def post(self, path: str, body: bytes | list[bytes] = b"{}") -> Exchange:
        chunks = [body] if isinstance(body, bytes) else body
        return await exchange(self._app, keyed(path=path), chunks=chunks)

    async def _note(self) -> None:
        """Be recorded."""

    async def _serve(self, scope, receive, send) -> None:
        self.calls.append(scope["path"])
        if self.records:
            await self._step()
        if scope["path"] == "/orders":
            await self.gate.wait()
            headers = [(b"location", b"/orders/"), (b"x-shop", b"1")]
            await answer(send, b"over there", status=self.status, headers=headers)
            return
        await read_all(receive)
        self.fails -= 1
        await answer(send, b"ordered", status=500 if self.fails >= 0 else 201)


def summary(result: Exchange) -> tuple[int, bytes, list[str]]:
    return result.status, result.body, result.headers("location")


def code_of(result: Exchange) -> str:
    code: str = json.loads(result.body)["code"]
    return code


EXPIRE_ALL = (
    "UPDATE asgi_durable_responses SET expires_at_us = 1, forgotten_at_us = 1 RETURNING workflow_id"
)
REDIRECTED = (b"over there", ["/orders/"])


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize(
    ("policy", "body"),
    [
        ({}, b"{}"),
        ({"single_transaction": True}, b"{}"),
        ({"max_request_body": 1024, "oversize": "hash"}, LONG),
    ],
    ids=["usual", "single transaction", "long body"],
)
async def test_a_call_that_is_redirected_can_be_repeated(
    url: str, status: int, policy: dict, body: bytes | list[bytes]
) -> None:
    shop = Shop(url, **policy)
    shop.status = status
    async with shop.durable:
        calls = [await shop.post(path, body) for path in ["/orders", "/orders", "/orders/"]]
        again = [await shop.post(path, body) for path in ["/orders", "/orders/"]]
        other = await shop.post("/orders", b"other")

    assert [summary(call) for call in calls[:2]] == [(status, *REDIRECTED)] * 2
    assert (calls[2].status, calls[2].body) == (201, b"ordered")
    assert summary(again[0]) == (status, *REDIRECTED)
    assert again[0].headers("x-shop") == ["1"]
    assert (again[1].status, again[1].headers("idempotent-replayed")) == (201, ["true"])
    assert (other.status, code_of(other)) == (422, "KEY_REUSED")
    assert shop.calls == ["/orders", "/orders", "/orders/"]


async def test_a_redirected_call_can_be_repeated_after_a_restart_and_before_its_end(
    url: str,
) -> None:
    first = Shop(url)
    first.fails = 1
    async with first.durable:
        await first.post("/orders")
        assert (await first.post("/orders/")).status == 500
    second = Shop(url)
    async with second.durable:
        again = await second.post("/orders")
        ordered = await second.post("/orders/")

    assert (summary(again), ordered.status) == ((307, *REDIRECTED), 201)
    assert second.calls == ["/orders/"]


async def test_a_redirect_that_was_interrupted_leaves_the_key_free_when_it_is_made(
    url: str,
) -> None:
    stopped, shop = Shop(url), Shop(url)
    stopped.gate = Gate()
    async with stopped.durable:
        task = asyncio.get_running_loop().create_task(stopped.post("/orders"))
        await stopped.gate.reached.wait()
    await asyncio.gather(task, return_exceptions=True)
    async with shop.durable:
        results = [await shop.post(path) for path in ["/orders", "/orders/", "/orders"]]

    assert [result.status for result in results] == [307, 201, 307]


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_to_a_page_is_stored(url: str, status: int) -> None:
    shop = Shop(url)
    shop.status = status
    async with shop.durable:
        results = [await shop.post("/orders") for _ in range(2)]

    assert [summary(result) for result in results] == [(status, *REDIRECTED)] * 2
    assert shop.calls == ["/orders"]


async def test_a_redirect_after_something_was_recorded_is_stored(url: str) -> None:
    shop = Shop(url)
    shop.records = True
    async with shop.durable:
        results = [await shop.post("/orders") for _ in range(2)]
        elsewhere = await shop.post("/orders/")

    assert [summary(result) for result in results] == [(307, *REDIRECTED)] * 2
    assert (code_of(elsewhere), shop.calls) == ("KEY_REUSED", ["/orders"])


async def test_a_redirect_is_forgotten_with_its_retention(url: str) -> None:
    shop = Shop(url)
    async with shop.durable:
        for path in ("/orders", "/orders/"):
            await shop.post(path)
        await query(url, EXPIRE_ALL)
        again = await shop.post("/orders")

    assert (again.status, shop.calls) == (307, ["/orders", "/orders/", "/orders"])
