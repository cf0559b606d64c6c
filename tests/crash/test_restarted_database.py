"""A Postgres that crashes and starts again, and again, under load."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from support.counting import Service, new_seed, post_anywhere, show, until
from support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

RESTARTS = 10
AT_ONCE = 30
WORKFLOWS = 10
# Two seconds are what it should be at most; the machine of the tests has more to do.
LONGEST_RECOVERY_SECONDS = 5.0


class Load:
    """Keyed requests, one after the other from many clients at once, until it is over."""

    def __init__(self, service: Service, seed: int) -> None:
        self.answers: dict[str, httpx.Response] = {}
        self.answered_at: list[float] = []
        self._service = service
        self._choices = random.Random(seed)
        self._is_over = False
        self._count = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send requests; at the end, wait until all are answered."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60.0, limits=limits) as client:
            tasks = [asyncio.ensure_future(self._ask(client)) for _ in range(AT_ONCE)]
            try:
                yield
            finally:
                self._is_over = True
                await asyncio.gather(*tasks)

    async def _ask(self, client: httpx.AsyncClient) -> None:
        while not self._is_over:
            name = f"r{self._count}"
            self._count += 1
            seconds = [self._choices.uniform(0.0, 0.1) for _ in range(3)]
            urls = self._choices.sample(self._service.urls, len(self._service.urls))
            path = self._choices.choice(["/steps", "/child/work"])
            body = {"name": name, "seconds": seconds}
            self.answers[name] = await post_anywhere(client, urls, path, key=name, json=body)
            self.answered_at.append(time.monotonic())


async def test_ten_crashes_under_load_lose_nothing_double_nothing_and_fail_nothing(
    tmp_path: Path, own_postgres: PostgresServer, own_postgres_url: str
) -> None:
    seed = new_seed()
    moments = random.Random(seed)
    service = Service(tmp_path, own_postgres_url)
    load = Load(service, seed)
    accepted_at = []
    with service.running() as servers:
        async with load.running():
            for _ in range(RESTARTS):
                await asyncio.sleep(moments.uniform(0.2, 1.0))
                await asyncio.to_thread(own_postgres.restart_immediately)
                accepted_at.append(time.monotonic())
                await service.note_recorded()
                await until_answered_after(load, accepted_at[-1])
        recoveries = [min(a for a in load.answered_at if a > at) - at for at in accepted_at]
        show(f"the first of {len(load.answers)} answers after a crash", recoveries)

        assert {answer.status_code for answer in load.answers.values()} == {200}
        assert await service.effects() == dict.fromkeys(load.answers, 1)
        assert service.repeated_steps() == []
        assert set((await service.states()).values()) == {"SUCCESS"}
        assert max(recoveries) < LONGEST_RECOVERY_SECONDS
        assert not any("was declared dead" in server.log for server in servers)
        await assert_that_the_last_takes_work_over(service)


async def until_answered_after(load: Load, at: float) -> None:
    """Wait for an answer after a moment."""

    async def is_answered() -> bool:
        return bool(load.answered_at) and load.answered_at[-1] > at

    await until(is_answered)


async def assert_that_the_last_takes_work_over(service: Service) -> None:
    """Kill the first server; the other one still notices and goes on with its work."""
    first, last = service.servers
    names = [f"w{number}" for number in range(WORKFLOWS)]
    async with httpx.AsyncClient(timeout=30.0) as client:
        for name in names:
            body = {"name": name, "seconds": [0.2] * 5}
            (await client.post(f"{first.url}/start/work", json=body)).raise_for_status()
    await service.end(first, signal.SIGKILL)

    async def are_finished() -> bool:
        states = await service.states()
        return {states[name] for name in names} == {"SUCCESS"}

    await until(are_finished)
    takeovers = [takeover.seconds for takeover in service.takeovers()]
    show("taken over", takeovers)
    assert max(takeovers) < LONGEST_RECOVERY_SECONDS
    assert {entry.pid for entry in service.ledger() if entry.workflow_id in names} == {
        first.pid,
        last.pid,
    }
