"""Outcomes of requests, and of their retries; the table is that of docs/guide.md."""

from __future__ import annotations

import asyncio

import pytest
from answers.expectations import is_failure, is_own, is_problem, is_replay
from answers.shop import ALL, Breakdown, Shop, Watched, recorded, requests, sold
from support.asgi import Exchange
from support.interruption import Gate

from asgi_durable import FinalError

pytestmark = pytest.mark.anyio

EVENTS = [b"data: 1\n\n", b"data: 2\n\n"]


async def test_a_new_key_is_claimed_before_anything_runs(url: str, framework: str) -> None:
    """Row 8 of the table."""
    shop = Shop(url, framework)
    shop.script.gate = gate = Gate()
    async with shop.durable:
        running = asyncio.create_task(shop.post())
        await gate.reached.wait()
        # The second step has begun, so the record of the first one is durable.
        assert (await requests(url), await recorded(url)) == ([("PENDING", 1)], 1)
        gate.open()

        is_own(await running, 201)
    assert (await requests(url), await recorded(url)) == ([("SUCCESS", 1)], 3)
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_a_retry_gets_the_same_response_from_any_process(url: str, framework: str) -> None:
    """Row 14 of the table."""
    shop, elsewhere, later = (Shop(url, framework) for _ in range(3))
    async with elsewhere.durable:
        async with shop.durable:
            first = await shop.post()
            is_replay(await shop.post(), first)
            is_replay(await shop.post(key='"k"'), first, key='"k"')
            is_replay(await elsewhere.post(), first)
    async with later.durable:
        is_replay(await later.post(), first)

    is_own(first, 201)
    assert first.headers("set-cookie") == ["secret=1"]
    assert (shop.ran, elsewhere.ran, later.ran, await sold(url)) == (ALL, [], [], 1)


async def test_a_response_in_chunks_is_replayed_as_one(url: str, framework: str) -> None:
    """Row 14 of the table."""
    shop = Shop(url, framework)
    shop.script.pieces = [b"a", b"", b"\xff" * 1000]
    async with shop.durable:
        first, again = [await shop.post() for _ in range(2)]

    is_own(first, 201)
    is_replay(again, first)
    assert first.body == b"a" + b"\xff" * 1000
    assert again.headers("content-length") == first.headers("content-length")
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_a_response_that_is_too_long_is_not_stored(url: str, framework: str) -> None:
    """Row 15 of the table."""
    shop = Shop(url, framework, max_response_body=30)
    async with shop.durable:
        first, gone = [await shop.post() for _ in range(2)]

    is_gone(gone, first)
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_an_event_stream_is_not_stored(url: str, framework: str) -> None:
    """Row 15 of the table."""
    shop = Shop(url, framework)
    shop.script.media_type, shop.script.pieces = "text/event-stream", EVENTS
    async with shop.durable:
        first, gone = [await shop.post() for _ in range(2)]

    assert first.body == b"".join(EVENTS)
    is_gone(gone, first)
    assert (shop.ran, await sold(url)) == (ALL, 1)


def is_gone(gone: Exchange, first: Exchange) -> None:
    is_own(first, 201)
    problem = is_problem(gone, 410, "RESPONSE_NOT_KEPT", retryable=False)
    assert (problem["original_status"], problem["location"]) == (201, "/orders/1")
    assert gone.headers("idempotent-replayed") == ["true"]
    assert gone.headers("idempotency-key") == ["k"]
    assert gone.headers("durable-id") == first.headers("durable-id")


async def test_a_request_has_as_many_attempts_as_it_may(url: str, framework: str) -> None:
    """Row 17 of the table."""
    shop, elsewhere = (Shop(url, framework, max_attempts=2) for _ in range(2))
    shop.script.error = Breakdown()
    async with shop.durable, elsewhere.durable:
        for _ in range(2):
            is_failure(await shop.post(), 500)
        dead = await shop.post()
        again = await elsewhere.post()

    assert is_problem(dead, 500, "ATTEMPTS_EXHAUSTED", retryable=False)["run"] == 3
    assert dead.headers("idempotent-replayed") == ["true"]
    is_replay(again, dead)
    assert (shop.calls, elsewhere.calls) == (2, 0)
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_a_response_is_committed_before_it_is_sent(url: str, framework: str) -> None:
    """Row 20 of the table."""
    shop = Shop(url, framework)
    async with shop.durable:
        for status in (200, 204, 303):
            shop.script.status = status
            watched = Watched(lambda: requests(url))
            first = await shop.send_to(watched, key=str(status))

            is_own(first, status, key=str(status))
            assert set(watched.seen) == {("SUCCESS", 1)}
            is_replay(await shop.post(key=str(status)), first, key=str(status))
    assert (shop.ran, await sold(url)) == (ALL * 3, 3)


async def test_a_failure_after_the_response_undoes_nothing(url: str, framework: str) -> None:
    """Row 20 of the table, and the last crash point after it."""
    shop = Shop(url, framework)
    shop.script.late_error = Breakdown()
    async with shop.durable:
        first, again = [await shop.post() for _ in range(2)]

    is_own(first, 201)
    is_replay(again, first)
    assert (shop.ran, shop.background_calls, await sold(url)) == (ALL, 1, 1)


async def test_a_refusal_after_something_was_recorded_is_final(url: str, framework: str) -> None:
    """Row 21 of the table."""
    shop = Shop(url, framework)
    shop.script.status = 409
    async with shop.durable:
        first, again = [await shop.post() for _ in range(2)]

    is_own(first, 409)
    is_replay(again, first)
    assert (shop.ran, await sold(url), await requests(url)) == (ALL, 1, [("SUCCESS", 1)])


async def test_a_refusal_is_final_if_refusals_are_stored(url: str, framework: str) -> None:
    """Row 21 of the table."""
    shop = Shop(url, framework, store_4xx=True)
    shop.script.refusal = 409
    async with shop.durable:
        first, again = [await shop.post() for _ in range(2)]

    is_own(first, 409)
    is_replay(again, first)
    assert (shop.calls, shop.ran, await requests(url)) == (1, [], [("SUCCESS", 1)])


async def test_a_refusal_before_anything_was_recorded_leaves_the_key_free(
    url: str, framework: str
) -> None:
    """Row 22 of the table."""
    shop = Shop(url, framework)
    async with shop.durable:
        for shop.script.refusal in (400, 404, 409, 410, 422):
            is_own(await shop.post(), shop.script.refusal)
            assert await requests(url) == []
        shop.script.refusal = None

        # The corrected request may have the same key.
        is_own(await shop.post(body=b"corrected"), 201)
    assert (shop.calls, shop.ran, await sold(url)) == (6, ALL, 1)


OF_THE_MOMENT = [401, 403, 407, 408, 421, 425, 429]


async def test_a_response_about_the_moment_leaves_the_key_free(url: str, framework: str) -> None:
    """Row 22 of the table."""
    shop = Shop(url, framework, store_4xx=True)
    async with shop.durable:
        for shop.script.refusal in OF_THE_MOMENT:
            is_own(await shop.post(), shop.script.refusal)
            assert await requests(url) == []

    assert (shop.calls, shop.ran) == (len(OF_THE_MOMENT), [])


async def test_a_response_about_the_moment_leaves_what_is_recorded_to_the_retry(
    url: str, framework: str
) -> None:
    """Row 22 of the table."""
    shop = Shop(url, framework, store_4xx=True)
    async with shop.durable:
        for attempt, shop.script.status in enumerate(OF_THE_MOMENT, start=1):
            refused = await shop.post()
            is_own(refused, shop.script.status)
            assert (await requests(url), await recorded(url)) == ([("PENDING", attempt)], 3)
            assert await shop.state(refused) == "RETRYABLE"
        shop.script.status = 201

        is_own(await shop.post(), 201)
    assert (shop.ran, await sold(url), await requests(url)) == (ALL, 1, [("SUCCESS", 8)])


@pytest.mark.parametrize("how", ["raises", "answers 503"])
async def test_a_failure_is_not_final_and_its_log_stays(url: str, framework: str, how: str) -> None:
    """Row 23 of the table."""
    shop, elsewhere = Shop(url, framework), Shop(url, framework)
    if how == "raises":
        shop.script.error = Breakdown()
    else:
        shop.script.status = int(how[-3:])
    async with shop.durable, elsewhere.durable:
        failed = [await shop.post() for _ in range(2)]
        assert (await requests(url), await recorded(url)) == ([("PENDING", 2)], 3)
        if how != "raises":
            assert await shop.state(failed[0]) == "RETRYABLE"
        own = await elsewhere.post()
        replay = await shop.post()

    for one in failed:
        if how == "raises":
            is_failure(one, 500)
        else:
            is_own(one, int(how[-3:]))
            assert one.headers("retry-after") == []
    is_own(own, 201)
    is_replay(replay, own)
    assert (shop.ran, elsewhere.ran, elsewhere.calls) == (ALL, [], 1)
    assert (await sold(url), await requests(url)) == (1, [("SUCCESS", 3)])


async def test_a_retry_continues_at_the_step_that_failed(url: str, framework: str) -> None:
    """Row 23 of the table."""
    shop = Shop(url, framework)
    shop.script.fails_at = {"ship"}
    async with shop.durable:
        is_failure(await shop.post(), 500)
        assert (await sold(url), await requests(url)) == (0, [("PENDING", 1)])
        shop.script.fails_at = set()

        is_own(await shop.post(), 201)
    assert (shop.ran, await sold(url)) == (["reserve", "ship", "ship", "save"], 1)


async def test_a_retry_does_not_repeat_what_runs_at_most_once(url: str, framework: str) -> None:
    """Row 23 of the table."""
    shop = Shop(url, framework)
    shop.script.ships_once, shop.script.fails_at = True, {"ship"}
    async with shop.durable:
        is_failure(await shop.post(), 500)
        shop.script.fails_at = set()

        is_failure(await shop.post(), 500)
    assert (shop.ran, await sold(url), await requests(url)) == (ALL[:2], 0, [("PENDING", 2)])


async def test_a_final_error_is_the_response_for_ever(url: str, framework: str) -> None:
    """Row 23 of the table."""
    shop = Shop(url, framework)
    shop.script.error = FinalError("sold out", code="SOLD_OUT", status_code=503)
    async with shop.durable:
        first, again = [await shop.post() for _ in range(2)]

    is_own(first, 503)
    is_problem(first, 503, "SOLD_OUT", retryable=False)
    is_replay(again, first)
    assert (shop.ran, await sold(url), await requests(url)) == (ALL, 1, [("SUCCESS", 1)])


async def test_code_that_left_its_log_gets_an_error_and_may_be_repaired(
    url: str, framework: str
) -> None:
    """Row 28 of the table."""
    shop = Shop(url, framework)
    shop.script.error = Breakdown()
    async with shop.durable:
        await shop.post()
        shop.script.error, shop.script.first = None, "something else"
        diverged = await shop.post()
        assert await shop.state(diverged) == "RETRYABLE"
        assert await recorded(url) == 3
        shop.script.first = "reserve"
        repaired = await shop.post()

    is_problem(diverged, 500, "NON_DETERMINISTIC_WORKFLOW", retryable=False)
    is_own(diverged, 500)
    is_own(repaired, 201)
    assert (shop.ran, await sold(url)) == (ALL, 1)
