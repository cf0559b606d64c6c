"""Requests whose response has expired; the table is that of docs/guide.md."""

from __future__ import annotations

import pytest
from answers.expectations import is_own, is_problem, is_replay
from answers.shop import ALL, Shop, sold

pytestmark = pytest.mark.anyio


async def test_an_expired_response_is_not_replayed_and_its_key_is_free(
    url: str, framework: str
) -> None:
    """Row 19 of the table, and row 8 after it."""
    shop = Shop(url, framework, retention=0.0)
    async with shop.durable:
        first = await shop.post()
        new = await shop.post(body=b"another order")

    is_own(first, 201)
    is_own(new, 201)
    assert new.body != first.body
    assert (shop.ran, await sold(url)) == (ALL * 2, 2)


async def test_a_key_may_be_refused_when_its_response_has_expired(url: str, framework: str) -> None:
    """Row 19 of the table."""
    shop, elsewhere = (Shop(url, framework, retention=0.0, on_expired="reject") for _ in range(2))
    async with shop.durable, elsewhere.durable:
        is_own(await shop.post(), 201)
        refused = [await shop.post(), await elsewhere.post(), await shop.post(body=b"other")]

    for one in refused:
        is_problem(one, 410, "KEY_EXPIRED", retryable=False)
        assert one.headers("idempotency-key") == ["k"]
        assert one.headers("location") == one.headers("idempotent-replayed") == []
    assert (shop.ran, elsewhere.ran, await sold(url)) == (ALL, [], 1)


async def test_a_refused_key_is_free_in_the_end(url: str, framework: str) -> None:
    """Row 19 of the table, and row 8 after it."""
    shop = Shop(url, framework, retention=0.0, on_expired="reject", tombstone_retention=0.0)
    async with shop.durable:
        for _ in range(2):
            is_own(await shop.post(), 201)

    assert (shop.ran, await sold(url)) == (ALL * 2, 2)


async def test_a_response_that_has_not_expired_is_replayed(url: str, framework: str) -> None:
    """Row 14 of the table, beside row 19."""
    shop = Shop(url, framework, retention=3600.0, on_expired="reject")
    async with shop.durable:
        first, again = [await shop.post() for _ in range(2)]

    is_replay(again, first)
    assert (shop.ran, await sold(url)) == (ALL, 1)
