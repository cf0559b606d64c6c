"""Requests that are interrupted and resumed; the table is that of docs/guide.md."""

from __future__ import annotations

import asyncio

import pytest
from answers.expectations import is_failure, is_own, is_problem, is_replay
from answers.shop import (
    ALL,
    Client,
    Shop,
    dies_in_its_second_step,
    post_until_it_is_free,
    prefer,
    recorded,
    requests,
    sold,
)
from support.executors import declared_dead, until
from support.interruption import Gate

pytestmark = pytest.mark.anyio

# Steps of a request that was interrupted in its second step: those that ran, and the others.
BEGUN, LEFT = ["reserve", "ship"], ["ship", "save"]
# So long that no test lives to see its end.
ENDLESS_SECONDS = 36_000.0


def waiting_shop(url: str, framework: str, **options: object) -> Shop:
    """Return a shop whose second step waits at a gate."""
    shop = Shop(url, framework, **options)
    shop.script.gate = Gate()
    return shop


async def test_a_request_whose_process_died_is_resumed_by_its_retry(
    url: str, framework: str
) -> None:
    """Row 12 of the table."""
    first, second = waiting_shop(url, framework), Shop(url, framework)
    async with second.durable:
        await dies_in_its_second_step(first)
        own = await post_until_it_is_free(second)
        replay = await second.post()

    is_own(own, 201)
    is_replay(replay, own)
    assert (first.ran, second.ran, await sold(url)) == (BEGUN, LEFT, 1)
    assert await requests(url) == [("SUCCESS", 2)]


async def test_a_process_that_lost_a_request_sends_its_new_owners_response(
    url: str, framework: str
) -> None:
    """Row 26 of the table."""
    first, second = waiting_shop(url, framework), Shop(url, framework)
    async with first.durable, second.durable:
        request = asyncio.create_task(first.post())
        await first.script.gate.reached.wait()
        async with declared_dead(first.durable):
            own = await second.post()
            first.script.gate.open()
        late = await request

    is_own(own, 201)
    is_replay(late, own)
    assert (first.ran, second.ran, await sold(url)) == (BEGUN, LEFT, 1)


async def test_who_has_lost_a_request_does_not_wait_for_ever(url: str, framework: str) -> None:
    """Row 26 of the table."""
    first, second = waiting_shop(url, framework), waiting_shop(url, framework)
    async with first.durable, second.durable:
        request = asyncio.create_task(first.post(headers=prefer("wait=0")))
        await first.script.gate.reached.wait()
        async with declared_dead(first.durable):
            new = asyncio.create_task(second.post())
            await second.script.gate.reached.wait()
            first.script.gate.open()
        late = await request
        second.script.gate.open()
        own = await new

    is_problem(late, 409, "IN_PROGRESS", retryable=True)
    assert late.headers("idempotent-replayed") == []
    is_own(own, 201)
    assert (first.ran, second.ran, await sold(url)) == (BEGUN, LEFT, 1)


async def test_what_runs_at_most_once_is_not_run_by_the_retry(url: str, framework: str) -> None:
    """Row 27 of the table."""
    first, second = waiting_shop(url, framework), Shop(url, framework)
    first.script.ships_once = second.script.ships_once = True
    async with second.durable:
        await dies_in_its_second_step(first)
        interrupted = [await post_until_it_is_free(second), await second.post()]
        assert await second.state(interrupted[0]) == "RETRYABLE"

    for one in interrupted:
        is_problem(one, 500, "STEP_INTERRUPTED", retryable=False)
        assert one.headers("idempotent-replayed") == []
    assert (first.ran, second.ran, await sold(url)) == (BEGUN, [], 0)
    assert (await requests(url), await recorded(url)) == ([("PENDING", 3)], 2)


async def test_code_may_find_out_what_became_of_it(url: str, framework: str) -> None:
    """Row 27 of the table."""
    first, second = waiting_shop(url, framework), Shop(url, framework)
    first.script.ships_once = second.script.ships_once = second.script.finds_out = True
    second.script.fails_at = {"find out"}
    async with second.durable:
        await dies_in_its_second_step(first)
        is_failure(await post_until_it_is_free(second), 500)
        second.script.fails_at = set()
        own, replay = [await second.post() for _ in range(2)]

    is_own(own, 201)
    is_replay(replay, own)
    assert first.ran == BEGUN
    assert (second.ran, await sold(url)) == (["find out", "find out", "save"], 1)


async def test_a_process_that_stops_leaves_its_requests_to_others_at_once(
    url: str, framework: str
) -> None:
    """Row 29 of the table."""
    first = waiting_shop(url, framework, lease=ENDLESS_SECONDS)
    second = Shop(url, framework, lease=ENDLESS_SECONDS)
    abandoned = Client(b"{}")
    async with second.durable:
        async with first.durable:
            served = asyncio.create_task(first.post())
            await first.script.gate.reached.wait()
            cancelled = asyncio.create_task(first.send_to(abandoned, key="other"))
            await until(lambda: len(first.ran) == 2 * len(BEGUN))
            # As servers do with what is left at their end.
            cancelled.cancel()
            await asyncio.wait([cancelled])
        told = await served
        assert (await requests(url), await recorded(url)) == ([("PENDING", 1)] * 2, 2)
        is_own(await second.post(headers=prefer("wait=0")), 201)
        is_own(await second.post(headers=prefer("wait=0"), key="other"), 201, key="other")

    is_problem(told, 503, "WORKFLOW_INTERRUPTED", retryable=True)
    assert abandoned.sent == []
    assert (first.ran, second.ran, await sold(url)) == (BEGUN * 2, LEFT * 2, 2)


async def test_a_client_that_leaves_does_not_stop_the_work(url: str, framework: str) -> None:
    """Row 30 of the table."""
    shop, client = waiting_shop(url, framework), Client(b"{}")
    async with shop.durable:
        request = asyncio.create_task(shop.send_to(client))
        await shop.script.gate.reached.wait()
        client.disconnected.set()
        shop.script.gate.open()
        first = await request
        is_own(first, 201)
        is_replay(await shop.post(), first)

    assert (shop.ran, await sold(url), await requests(url)) == (ALL, 1, [("SUCCESS", 1)])


async def test_a_disconnect_does_not_stop_a_response_in_chunks(url: str, framework: str) -> None:
    """Row 30 of the table: frameworks listen for the disconnect then, so the call may end first."""
    shop, client = waiting_shop(url, framework), Client(b"{}")
    shop.script.pieces = [b"a", b"b"]
    async with shop.durable:
        request = asyncio.create_task(shop.send_to(client))
        await shop.script.gate.reached.wait()
        client.disconnected.set()
        shop.script.gate.open()
        await request
        again = await shop.post()
        is_replay(await shop.post(), again)

    assert (again.status, again.body, again.headers("idempotent-replayed")) == (
        201,
        b"ab",
        ["true"],
    )
    assert (shop.ran, await sold(url), await requests(url)) == (ALL, 1, [("SUCCESS", 1)])


async def test_a_client_that_leaves_may_stop_the_work(url: str, framework: str) -> None:
    """Row 31 of the table."""
    shop = waiting_shop(url, framework, on_disconnect="cancel")
    client = Client(b"{}")
    async with shop.durable:
        request = asyncio.create_task(shop.send_to(client))
        await shop.script.gate.reached.wait()
        client.disconnected.set()
        await request
        assert (client.sent, await requests(url)) == ([], [("PENDING", 1)])
        assert (shop.ran, await recorded(url), await sold(url)) == (BEGUN, 1, 0)
        shop.script.gate.open()

        is_own(await shop.post(), 201)
    assert (shop.ran, await sold(url)) == (BEGUN + LEFT, 1)
