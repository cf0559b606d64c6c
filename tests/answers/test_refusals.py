"""Requests that nothing runs for; the table is that of docs/guide.md, "Requests with a key"."""

from __future__ import annotations

import asyncio

import pytest
from answers.expectations import is_own, is_problem, is_replay, is_unmarked
from answers.shop import ALL, Breakdown, Client, Shop, requests, sold
from support.asgi import Exchange
from support.interruption import Gate

pytestmark = pytest.mark.anyio

DOCS = "https://docs.example/keys"
LINK = f'<{DOCS}>; rel="describedby"'


async def test_on_a_method_that_is_not_covered_a_key_has_no_effect(
    file_url: str, framework: str
) -> None:
    """Row 1 of the table."""
    shop = Shop(file_url, framework)
    methods = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] * 2
    async with shop.durable:
        for method in methods:
            is_unmarked(await shop.post(method=method), 201)

    assert (shop.ran, await sold(file_url)) == (ALL * len(methods), len(methods))
    assert await requests(file_url) == []


async def test_on_a_route_that_opted_out_a_key_has_no_effect(url: str, framework: str) -> None:
    """Row 1 of the table."""
    shop = Shop(url, framework, routes={"POST /orders": None})
    async with shop.durable:
        for _ in range(2):
            is_unmarked(await shop.post(), 201)

    assert (shop.ran, await sold(url), await requests(url)) == (ALL * 2, 2, [])


async def test_a_request_without_a_key_is_the_applications_own(url: str, framework: str) -> None:
    """Row 2 of the table."""
    shop = Shop(url, framework)
    async with shop.durable:
        for _ in range(2):
            is_unmarked(await shop.post(key=None), 201)

    assert (shop.ran, await sold(url), await requests(url)) == (ALL * 2, 2, [])


async def test_a_missing_key_is_refused_where_one_is_required(
    file_url: str, framework: str
) -> None:
    """Row 3 of the table."""
    shop = Shop(file_url, framework, required=True, docs_url=DOCS)
    async with shop.durable:
        refused = await shop.post(key=None)

    is_problem(refused, 400, "KEY_MISSING", retryable=False)
    assert refused.headers("link") == [LINK]
    assert (shop.calls, await requests(file_url)) == (0, [])


MALFORMED = ["", "a,b", '"unfinished', "x" * 256, "refused"]


async def test_a_malformed_key_is_refused(file_url: str, framework: str) -> None:
    """Row 4 of the table."""
    shop = Shop(file_url, framework, validate_key=lambda key: key != "refused", docs_url=DOCS)
    async with shop.durable:
        answers = [await shop.post(key=key) for key in MALFORMED]
        answers.append(await shop.post(headers=[("Idempotency-Key", "repeated")]))

    for refused in answers:
        is_problem(refused, 400, "KEY_MALFORMED", retryable=False)
        assert refused.headers("link") == [LINK]
    assert (shop.calls, await requests(file_url)) == (0, [])


async def test_a_body_over_the_limit_is_refused(url: str, framework: str) -> None:
    """Row 5 of the table."""
    shop = Shop(url, framework, max_request_body=10)
    async with shop.durable:
        for headers in ([], [("Content-Length", "11")]):
            refused = await shop.send_to(Client(chunks=[b"x" * 6, b"x" * 5]), headers=headers)
            is_problem(refused, 413, "BODY_TOO_LARGE", retryable=False)
        assert (shop.calls, await requests(url)) == (0, [])
        # It has not used its key up.
        is_own(await shop.post(body=b"x" * 10), 201)


async def test_a_client_that_disconnects_before_its_body_ends_gets_no_response(
    url: str, framework: str
) -> None:
    """Row 6 of the table."""
    shop = Shop(url, framework)
    vanished = Vanishing()
    async with shop.durable:
        await shop.send_to(vanished)

        assert (vanished.sent, shop.calls, await requests(url)) == ([], 0, [])
        is_own(await shop.post(), 201)


class Vanishing(Client):
    """A client that sends half a body."""

    def __init__(self) -> None:
        super().__init__(chunks=[b"half", b"of it"])
        self.disconnected.set()

    async def receive(self):
        message = await super().receive()
        self._chunks.clear()
        return message


OTHERS = [
    {"body": b"other"},
    {"path": "/returns"},
    {"query_string": b"fast=1"},
    {"method": "PATCH"},
]


async def test_the_key_of_a_finished_request_is_no_other_requests(url: str, framework: str) -> None:
    """Row 9 of the table."""
    shop = Shop(url, framework)
    async with shop.durable:
        first = await shop.post()
        for other in OTHERS:
            is_reuse(await shop.post(**other), first)
        is_replay(await shop.post(), first)

    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_the_key_of_a_running_request_is_no_other_requests(url: str, framework: str) -> None:
    """Row 9 of the table."""
    shop, elsewhere = Shop(url, framework), Shop(url, framework)
    shop.script.gate = gate = Gate()
    async with shop.durable, elsewhere.durable:
        running = asyncio.create_task(shop.post())
        await gate.reached.wait()
        refused = [await one.post(body=b"other") for one in (shop, elsewhere)]
        gate.open()
        first = await running

    for one in refused:
        is_reuse(one, first)
    assert (shop.ran, elsewhere.ran, await sold(url)) == (ALL, [], 1)


async def test_the_key_of_a_failed_request_is_no_other_requests(url: str, framework: str) -> None:
    """Row 9 of the table."""
    shop = Shop(url, framework)
    shop.script.error = Breakdown()
    async with shop.durable:
        failed = await shop.post()
        is_reuse(await shop.post(body=b"other"), failed)

        shop.script.error = None
        is_own(await shop.post(), 201)
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_a_dialect_refuses_the_key_of_another_request_as_stripe_does(
    file_url: str, framework: str
) -> None:
    """Row 9 of the table."""
    shop = Shop(file_url, framework, dialect="stripe")
    async with shop.durable:
        first = await shop.post()

        is_problem(await shop.post(body=b"other"), 400, "KEY_REUSED", retryable=False)
        is_replay(await shop.post(), first)
    assert (shop.ran, await sold(file_url)) == (ALL, 1)


def is_reuse(refused: Exchange, first: Exchange) -> None:
    """Check a refusal that tells nothing of the stored response."""
    problem = is_problem(refused, 422, "KEY_REUSED", retryable=False)
    assert problem["idempotency_key"] == "k"
    assert refused.headers("idempotency-key") == ["k"]
    assert refused.headers("idempotent-replayed") == refused.headers("location") == []
    assert first.body not in refused.body
    assert refused.headers("etag") == []
