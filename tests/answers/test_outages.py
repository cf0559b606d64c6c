"""The database fails at the claim, or at the end; the table is that of docs/guide.md."""

from __future__ import annotations

import pytest
from answers.expectations import is_own, is_problem, is_replay
from answers.outage import Outage, impatient_shop
from answers.shop import ALL, requests, sold

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("how long a lock is waited for is a setting of the session"),
]


async def test_nothing_runs_while_the_storage_is_not_available(url: str, framework: str) -> None:
    """Row 7 of the table."""
    shop = impatient_shop(url, framework)
    async with shop.durable, Outage(url) as outage:
        await outage.begin()
        refused = await shop.post()
        assert (shop.calls, await requests(url)) == (0, [])
        await outage.end()
        own = await shop.post()

    is_problem(refused, 503, "STORAGE_UNAVAILABLE", retryable=True)
    assert refused.headers("idempotent-replayed") == []
    is_own(own, 201)
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_a_request_may_bypass_a_storage_that_is_not_available(
    url: str, framework: str
) -> None:
    """Row 7 of the table."""
    shop = impatient_shop(url, framework, on_store_error="bypass")
    shop.script.is_plain = True
    async with shop.durable, Outage(url) as outage:
        await outage.begin()
        unprotected = await shop.post()
        await outage.end()
        assert await requests(url) == []
        protected = await shop.post()

    assert (unprotected.status, unprotected.body) == (201, b"\xff\x00call 1")
    assert unprotected.headers("idempotency-status") == ["ignored"]
    assert unprotected.headers("idempotent-replayed") == []
    assert unprotected.is_complete
    is_own(protected, 201)
    assert protected.body == b"\xff\x00call 2"


async def test_a_response_that_the_log_repeats_is_sent_though_it_is_not_committed(
    url: str, framework: str
) -> None:
    """Row 24 of the table."""
    shop = impatient_shop(url, framework)
    async with shop.durable, Outage(url) as outage:
        shop.script.at_end = outage.begin
        first = await shop.post()
        states = await requests(url)
        await outage.end()
        shop.script.at_end = None
        again = await shop.post()
        replay = await shop.post()

    is_own(first, 201)
    assert states == [("PENDING", 1)]
    is_own(again, 201)
    assert again.body == first.body
    is_replay(replay, first)
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_a_response_that_nothing_repeats_is_not_sent_unless_committed(
    url: str, framework: str
) -> None:
    """Row 25 of the table."""
    shop = impatient_shop(url, framework)
    shop.script.is_plain = True
    async with shop.durable, Outage(url) as outage:
        shop.script.at_end = outage.begin
        unknown = await shop.post()
        states = await requests(url)
        await outage.end()
        shop.script.at_end = None
        own = await shop.post()
        replay = await shop.post()

    is_problem(unknown, 503, "OUTCOME_UNKNOWN", retryable=True)
    assert b"call 1" not in unknown.body
    assert unknown.headers("location") == unknown.headers("idempotent-replayed") == []
    assert states == [("PENDING", 1)]
    is_own(own, 201)
    assert own.body == b"\xff\x00call 2"
    is_replay(replay, own)


async def test_a_response_that_nothing_repeats_is_sent_with_a_bypass(
    url: str, framework: str
) -> None:
    """Row 25 of the table."""
    shop = impatient_shop(url, framework, on_store_error="bypass")
    shop.script.is_plain = True
    async with shop.durable, Outage(url) as outage:
        shop.script.at_end = outage.begin
        shown = await shop.post()
        await outage.end()

    assert (shown.status, shown.body) == (201, b"\xff\x00call 1")
    assert shown.headers("idempotency-status") == ["ignored"]
    assert shown.headers("idempotent-replayed") == []
