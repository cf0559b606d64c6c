"""Duplicates of a running keyed request: they wait for its response."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.asgi import Exchange, answer, exchange, http_scope, keyed
from support.interruption import Gate

from asgi_durable import Durable
from asgi_durable.engine.requests import claims
from asgi_durable.middleware.idempotency.waiting import preferences
from asgi_durable.middleware.policies.policy import IdempotencyPolicy

pytestmark = pytest.mark.anyio


class Desk:
    """An application in one process whose handler waits at a gate."""

    def __init__(self, url: str, *, max_wait: float = 60.0) -> None:
        policy = IdempotencyPolicy(max_wait=max_wait)
        self.durable = Durable(url, idempotency=policy, drain_timeout=0.0)
        self.app = self.durable.wrap(self._serve)
        self.calls = 0
        self.gate = Gate()

    async def post(self, prefer: str = "") -> Exchange:
        """Send the request."""
        return await exchange(self.app, keyed(headers=[("Prefer", prefer)]), b"{}")

    async def waiting_duplicates(self, count: int) -> list[asyncio.Task[Exchange]]:
        """Send the request so many times more, and return once all of them wait."""
        duplicates = [asyncio.create_task(self.post()) for _ in range(count)]
        running = self.durable.engine._running
        assert running is not None
        while running.requests._duplicates.total() < count:
            await asyncio.sleep(0)
        return duplicates

    async def _serve(self, scope, receive, send) -> None:
        self.calls += 1
        await self.gate.wait()
        await answer(send, f"call {self.calls}".encode())


async def test_duplicates_get_the_response_as_soon_as_the_first_one_does(database_url: str) -> None:
    desk = Desk(database_url)
    async with desk.durable:
        first = asyncio.create_task(desk.post())
        await desk.gate.reached.wait()
        duplicates = await desk.waiting_duplicates(200)
        desk.gate.open()
        answers = await asyncio.gather(first, *duplicates)

    assert desk.calls == 1
    assert {(a.status, a.body) for a in answers} == {(200, b"call 1")}
    assert sum(a.headers("idempotent-replayed") == ["true"] for a in answers) == 200


async def test_duplicates_on_another_process_get_the_response_as_well(database_url: str) -> None:
    here, there = Desk(database_url), Desk(database_url)
    async with here.durable, there.durable:
        first = asyncio.create_task(here.post())
        await here.gate.reached.wait()
        duplicates = [*await here.waiting_duplicates(5), *await there.waiting_duplicates(5)]
        here.gate.open()
        answers = await asyncio.gather(first, *duplicates)

    assert (here.calls, there.calls) == (1, 0)
    assert {(a.status, a.body) for a in answers} == {(200, b"call 1")}


@pytest.mark.parametrize("prefer", ["wait=0", "handling=strict, Wait = 0", 'wait="0"; x=y'])
async def test_a_client_may_prefer_not_to_wait(database_url: str, prefer: str) -> None:
    desk = Desk(database_url)
    async with desk.durable:
        first = asyncio.create_task(desk.post())
        await desk.gate.reached.wait()
        duplicate = await desk.post(prefer)
        desk.gate.open()
        await first

    assert (duplicate.status, duplicate.headers("retry-after")) == (409, ["1"])


async def test_nobody_waits_for_longer_than_is_allowed(database_url: str) -> None:
    here, there = Desk(database_url, max_wait=0.2), Desk(database_url, max_wait=0.2)
    async with here.durable, there.durable:
        first = asyncio.create_task(here.post())
        await here.gate.reached.wait()
        began_at = time.monotonic()
        duplicates = await asyncio.gather(here.post("wait=30"), there.post("wait=30"))
        waited = time.monotonic() - began_at
        here.gate.open()
        await first

    assert [duplicate.status for duplicate in duplicates] == [409, 409]
    assert waited >= 0.2


async def test_where_too_many_wait_the_others_are_to_come_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "MAX_DUPLICATES_OF_ONE", 3)
    desk = Desk(database_url)
    async with desk.durable:
        first = asyncio.create_task(desk.post())
        await desk.gate.reached.wait()
        duplicates = await desk.waiting_duplicates(3)
        refused = await desk.post()
        desk.gate.open()
        answers = await asyncio.gather(first, *duplicates)

    assert refused.status == 409
    assert {a.status for a in answers} == {200}


async def test_a_duplicate_takes_over_what_the_first_one_fails_to_do(database_url: str) -> None:
    desk = Desk(database_url)
    failing = [True]

    async def serve(scope, receive, send) -> None:
        if failing:
            failing.clear()
            await desk.gate.wait()
            await answer(send, b"no", status=500)
        else:
            await answer(send, b"yes")

    desk.app = desk.durable.wrap(serve)
    async with desk.durable:
        first = asyncio.create_task(desk.post())
        await desk.gate.reached.wait()
        (duplicate,) = await desk.waiting_duplicates(1)
        desk.gate.open()

        assert (await first).status == 500
        assert (await duplicate).body == b"yes"


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ([], 5.0),
        (["wait=2"], 2.0),
        (["wait=9"], 5.0),
        (["return=minimal", "handling=strict, wait=1, wait=3"], 1.0),
        (["wait"], 5.0),
        (["wait=-1"], 5.0),
        (["wait=1.5"], 5.0),
        (["wait=99999999999999999999"], 5.0),
    ],
)
def test_how_long_a_client_prefers_to_wait(prefer: list[str], seconds: float) -> None:
    scope = http_scope("POST", "/", [("Prefer", line) for line in prefer])

    assert preferences(scope).wait_at_most(5.0) == seconds
