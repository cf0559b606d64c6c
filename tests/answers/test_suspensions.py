"""Requests that sleep; the table is that of docs/guide.md."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from answers.expectations import is_own, is_problem, is_replay
from answers.shop import (
    ALL,
    Shop,
    dies_in_its_second_step,
    post_until_it_is_free,
    prefer,
    requests,
    sold,
)
from support.asgi import Exchange
from support.executors import PATIENCE_SECONDS, kill, until
from support.interruption import Gate

from asgi_durable.engine.requests import progress as request_progress
from asgi_durable.engine.runs import suspension as sleepers
from asgi_durable.engine.steps import sleep
from asgi_durable.middleware.idempotency import attempt as request_attempt

pytestmark = pytest.mark.anyio

# So long that no test lives to see its end.
ENDLESS_SECONDS = 36_000.0
SLEPT = ["reserve", "ship"]


@pytest.fixture
def wake_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Set the clock, so that all sleeps are over."""
    monkeypatch.setattr(sleep, "LONGEST_NAP_SECONDS", 0.01)

    def wake_up() -> None:
        real = sleepers.seconds_until
        for module in (sleep, request_progress, request_attempt):
            monkeypatch.setattr(
                module, "seconds_until", lambda time_us: real(time_us) - ENDLESS_SECONDS
            )

    return wake_up


def sleeping_shop(url: str, framework: str, **policy: object) -> Shop:
    """Return a shop whose handler sleeps after its second step."""
    shop = Shop(url, framework, **policy)
    shop.script.sleeps = ENDLESS_SECONDS
    return shop


def is_suspended(result: Exchange, first: Exchange) -> None:
    """Check that a client gets the URL of the status page, and the time to look there."""
    told = json.loads(result.body)
    assert (result.status, told["state"]) == (202, "SUSPENDED")
    assert result.headers("retry-after") == [str(told["retry_after"])]
    assert 0 <= ENDLESS_SECONDS - told["retry_after"] < 100
    (durable_id,) = first.headers("durable-id")
    assert result.headers("durable-id") == [durable_id] == [told["id"]]
    assert result.headers("location") == [f"/durable/requests/{durable_id}"]
    assert result.headers("idempotency-key") == ["k"]
    assert result.headers("idempotent-replayed") == []
    assert result.is_complete


async def test_a_duplicate_of_a_sleeping_request_gets_a_location(
    url: str, framework: str, wake_up: Callable[[], None]
) -> None:
    """Row 16 of the table."""
    shops = [sleeping_shop(url, framework, max_wait=PATIENCE_SECONDS) for _ in range(2)]
    async with shops[0].durable, shops[1].durable, asyncio.timeout(PATIENCE_SECONDS):
        first = await shops[0].post()
        duplicates = [
            await shop.post(headers=how) for shop in shops for how in ([], prefer("wait=0"))
        ]
        pages = [await shop.get(first.headers("location")[0]) for shop in shops]
        results = [await shop.get(f"{first.headers('location')[0]}/result") for shop in shops]
        wake_up()
        await until(lambda: sold(url))
        replays = [await shop.post() for shop in shops]

    for told in (first, *duplicates):
        is_suspended(told, first)
    for page in pages:
        content = json.loads(page.body)
        assert (page.status, content["state"], content["steps"]) == (200, "SUSPENDED", 3)
        assert page.headers("retry-after") == [str(content["retry_after"])]
        assert 0 <= ENDLESS_SECONDS - content["retry_after"] < 100
    for result in results:
        problem = is_problem(result, 409, "IN_PROGRESS", retryable=True)
        assert 0 <= ENDLESS_SECONDS - problem["retry_after"] < 100
    for replay in replays:
        assert (replay.status, replay.headers("idempotent-replayed")) == (201, ["true"])
    assert (shops[0].ran, shops[1].ran, await sold(url)) == (ALL, [], 1)


async def test_duplicates_that_wait_get_a_location_once_it_falls_asleep(
    url: str, framework: str
) -> None:
    """Row 16 of the table."""
    shops = [sleeping_shop(url, framework, max_wait=PATIENCE_SECONDS) for _ in range(2)]
    shops[0].script.gate = gate = Gate()
    async with shops[0].durable, shops[1].durable, asyncio.timeout(PATIENCE_SECONDS):
        request = asyncio.create_task(shops[0].post())
        await gate.reached.wait()
        duplicates = [asyncio.create_task(shop.post()) for shop in shops]
        await until(lambda: all(waits(shop) for shop in shops))
        gate.open()
        first = await request
        for duplicate in duplicates:
            is_suspended(await duplicate, first)

    assert (shops[0].ran, shops[1].ran) == (SLEPT, [])


def waits(shop: Shop) -> bool:
    running = shop.durable.engine._running
    assert running is not None
    return running.requests._duplicates.total() > 0


async def test_where_nothing_can_be_looked_at_duplicates_are_to_come_back(
    url: str, framework: str, wake_up: Callable[[], None]
) -> None:
    """Row 16 of the table."""
    options = {"max_wait": PATIENCE_SECONDS, "status_prefix": None}
    shops = [sleeping_shop(url, framework, **options) for _ in range(2)]
    shops[0].script.gate = gate = Gate()
    async with shops[0].durable, shops[1].durable, asyncio.timeout(PATIENCE_SECONDS):
        request = asyncio.create_task(shops[0].post())
        await gate.reached.wait()
        gate.open()
        await until(lambda: is_asleep(shops[0]))
        duplicates = [await shop.post() for shop in shops]
        wake_up()
        first = await request

    for duplicate in duplicates:
        problem = is_problem(duplicate, 409, "IN_PROGRESS", retryable=True, has_page=False)
        assert 0 <= ENDLESS_SECONDS - problem["retry_after"] < 100
        assert duplicate.headers("location") == []
    is_own(first, 201)
    assert (shops[0].ran, shops[1].ran, await sold(url)) == (ALL, [], 1)


def is_asleep(shop: Shop) -> bool:
    running = shop.durable.engine._running
    assert running is not None
    runs = list(running.active._runs.values())
    return any(sleepers.asleep_until_us(run) is not None for run in runs)


async def test_a_short_sleep_is_waited_for(url: str, framework: str) -> None:
    """Row 16 of the table."""
    shop = sleeping_shop(url, framework, max_wait=PATIENCE_SECONDS)
    shop.script.sleeps = 0.01
    async with shop.durable:
        first = await shop.post()
        replay = await shop.post()

    is_own(first, 201)
    is_replay(replay, first)
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_a_retry_sleeps_what_is_left(
    url: str, framework: str, wake_up: Callable[[], None]
) -> None:
    """Row 16 of the table."""
    first, second = (sleeping_shop(url, framework) for _ in range(2))
    async with second.durable:
        await first.durable.engine.start()
        told = await first.post()
        await kill(first.durable)
        second.script.sleeps = 1.0
        await until(lambda: is_resumed(second))
        again = await second.post()
        wake_up()
        await until(lambda: sold(url))
        replay = await second.post()

    is_suspended(told, told)
    is_suspended(again, told)
    assert (replay.status, replay.headers("idempotent-replayed")) == (201, ["true"])
    assert (first.ran, second.ran, await sold(url)) == (SLEPT, ["save"], 1)
    assert await requests(url) == [("SUCCESS", 2)]


async def is_resumed(shop: Shop) -> bool:
    await shop.post()
    return shop.calls == 1


async def test_a_stop_leaves_what_sleeps_to_its_retry(url: str, framework: str) -> None:
    """Row 29 of the table, for what sleeps."""
    first, second = (sleeping_shop(url, framework) for _ in range(2))
    async with second.durable:
        async with first.durable:
            told = await first.post()
        assert await second.state(told) == "RETRYABLE"
        again = await second.post()

    is_suspended(again, told)
    assert (first.ran, second.ran, await requests(url)) == (SLEPT, [], [("PENDING", 2)])


async def test_what_died_before_it_slept_sleeps_in_the_retry(url: str, framework: str) -> None:
    """Rows 12 and 16 of the table."""
    first, second = (sleeping_shop(url, framework) for _ in range(2))
    first.script.gate = Gate()
    async with second.durable:
        await dies_in_its_second_step(first)
        told = await post_until_it_is_free(second)

    is_suspended(told, told)
    assert (first.ran, second.ran) == (SLEPT, ["ship"])
