"""Duplicates of a running request, and its status page; the table is that of docs/guide.md."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from answers.expectations import is_own, is_problem, is_replay
from answers.shop import ALL, Shop, prefer, principal, sold
from support.asgi import Exchange
from support.executors import PATIENCE_SECONDS, until
from support.interruption import Gate

pytestmark = pytest.mark.anyio

# So long that no test lives to see its end.
ENDLESS_SECONDS = 36_000.0
ALICE, BOB = principal("alice"), principal("bob")


class Pair:
    """Two shops on one database, of which the first one is at a gate with a request."""

    def __init__(self, here: Shop, there: Shop) -> None:
        self.here, self.there = here, there
        self.here.script.gate = self.gate = Gate()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[Exchange]]:
        """Start both shops, and the request."""
        async with self.here.durable, self.there.durable:
            request = asyncio.create_task(self.here.post(headers=ALICE))
            await self.gate.reached.wait()
            yield request
            self.gate.open()
            await request

    async def both_post(self, *headers: tuple[str, str]) -> list[Exchange]:
        """Send a duplicate to each of the shops; none of them may wait for long."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return [await shop.post(headers=[*ALICE, *headers]) for shop in (self.here, self.there)]


def pair(url: str, framework: str, **policy: object) -> Pair:
    return Pair(Shop(url, framework, **policy), Shop(url, framework, **policy))


def status_path(request: Exchange) -> str:
    return f"/durable/requests/{request.headers('durable-id')[0]}"


async def test_duplicates_wait_for_the_response(url: str, framework: str) -> None:
    """Row 10 of the table."""
    shops = pair(url, framework, max_wait=60.0)
    async with shops.running() as request:
        duplicates = [
            asyncio.create_task(shop.post(headers=ALICE)) for shop in (shops.here, shops.there)
        ]
        await until(lambda: waits(shops.here) and waits(shops.there))
        shops.gate.open()
        first = await request
        for duplicate in duplicates:
            is_replay(await duplicate, first)

    is_own(first, 201)
    assert (shops.here.ran, shops.there.ran, await sold(url)) == (ALL, [], 1)


def waits(shop: Shop) -> bool:
    running = shop.durable.engine._running
    assert running is not None
    return running.requests._duplicates.total() > 0


async def test_duplicates_that_do_not_wait_are_to_come_back(url: str, framework: str) -> None:
    """Row 10 of the table."""
    shops = pair(url, framework, max_wait=ENDLESS_SECONDS)
    async with shops.running() as request:
        duplicates = await shops.both_post(*prefer("wait=0"))
        shops.gate.open()
        first = await request
        is_replay((await shops.both_post())[1], first)

    for duplicate in duplicates:
        is_to_come_back(duplicate, first)
    assert (shops.here.ran, shops.there.ran, await sold(url)) == (ALL, [], 1)


@pytest.mark.parametrize(
    "policy",
    [{"max_wait": 0.01}, {"max_wait": ENDLESS_SECONDS, "dialect": "ietf"}],
    ids=["max_wait", "dialect"],
)
async def test_the_policy_may_keep_duplicates_from_waiting(
    file_url: str, framework: str, policy: dict[str, object]
) -> None:
    """Row 10 of the table."""
    shops = pair(file_url, framework, **policy)
    async with shops.running() as request:
        duplicates = await shops.both_post(*prefer("wait=36000"))
        shops.gate.open()
        first = await request

    for duplicate in duplicates:
        is_to_come_back(duplicate, first)


def is_to_come_back(duplicate: Exchange, first: Exchange) -> None:
    problem = is_problem(duplicate, 409, "IN_PROGRESS", retryable=True)
    assert duplicate.headers("location") == [status_path(first)] == [problem["instance"]]
    assert duplicate.headers("idempotency-key") == ["k"]
    assert duplicate.headers("idempotent-replayed") == []


async def test_duplicates_may_get_a_location_instead_of_waiting(url: str, framework: str) -> None:
    """Row 11 of the table."""
    shops = pair(url, framework, max_wait=ENDLESS_SECONDS)
    async with shops.running() as request:
        duplicates = await shops.both_post(*prefer("respond-async"))
        shops.gate.open()
        first = await request

    for duplicate in duplicates:
        is_accepted(duplicate, first)
        assert duplicate.headers("preference-applied") == ["respond-async"]
    assert (shops.here.ran, shops.there.ran, await sold(url)) == (ALL, [], 1)


async def test_the_first_one_may_get_a_location_instead_of_waiting(
    url: str, framework: str
) -> None:
    """Row 11 of the table."""
    shop = Shop(url, framework, max_wait=60.0)
    shop.script.gate = gate = Gate()
    async with shop.durable:
        accepted = await shop.post(headers=prefer("respond-async"))
        await gate.reached.wait()
        gate.open()
        replay = await shop.post()

    is_accepted(accepted, accepted)
    assert accepted.headers("preference-applied") == ["respond-async"]
    assert (replay.status, replay.headers("idempotent-replayed")) == (201, ["true"])
    assert (shop.ran, await sold(url)) == (ALL, 1)


async def test_a_route_may_send_everybody_a_location(url: str, framework: str) -> None:
    """Row 11 of the table."""
    shops = pair(url, framework, async_after=0.01)
    async with shops.running() as request:
        # The first request as well, although its work continues.
        accepted = [await request, *await shops.both_post()]

        shops.gate.open()
        await until(lambda: is_answered(shops))
    for one in accepted:
        is_accepted(one, accepted[0])
    assert (shops.here.ran, shops.there.ran, await sold(url)) == (ALL, [], 1)


async def is_answered(shops: Pair) -> bool:
    return (await shops.there.post(headers=ALICE)).status == 201


def is_accepted(result: Exchange, first: Exchange) -> None:
    assert result.status == 202
    assert result.headers("location") == [status_path(first)]
    assert int(result.headers("retry-after")[0]) >= 1
    assert result.headers("idempotency-key") == ["k"]
    assert result.headers("durable-id") == first.headers("durable-id")
    assert result.headers("idempotent-replayed") == []
    assert result.is_complete


async def test_the_status_of_a_request_is_its_principals(url: str, framework: str) -> None:
    """Row 32 of the table."""
    shops = pair(url, framework)
    async with shops.running() as request:
        (duplicate, _) = await shops.both_post(*prefer("respond-async"))
        path = status_path(duplicate)
        for shop in (shops.here, shops.there):
            page = await shop.get(path, *ALICE)
            assert json.loads(page.body) == {
                "id": duplicate.headers("durable-id")[0],
                "state": "RUNNING",
                "steps": 1,
                "attempts": 1,
                "retry_after": 1,
            }
            assert (page.status, page.headers("retry-after")) == (200, ["1"])
            await is_nobody_elses(shop, path)
            early = await shop.get(f"{path}/result", *ALICE)
            is_problem(early, 409, "IN_PROGRESS", retryable=True)
        shops.gate.open()
        first = await request
        for shop in (shops.here, shops.there):
            done = await shop.get(path, *ALICE)
            assert (done.status, done.headers("location")) == (303, [f"{path}/result"])
            result = await shop.get(f"{path}/result", *ALICE)
            is_replay(result, first, key=None)
            await is_nobody_elses(shop, path)
    assert (shops.here.ran, shops.there.ran, await sold(url)) == (ALL, [], 1)


async def is_nobody_elses(shop: Shop, path: str) -> None:
    for headers in (BOB, []):
        for page in (path, f"{path}/result"):
            refused = await shop.get(page, *headers)
            is_problem(refused, 404, "WORKFLOW_NOT_FOUND", retryable=False)
