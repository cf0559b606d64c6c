"""A Postgres that crashes and starts again, and again, under load."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import httpx
import pytest
from support.databases.postgres import PostgresServer
from support.processes.counting import Service, new_seed, show, until
from support.processes.load import Load

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.measures_time,
    pytest.mark.needs_sessions("a dead process is noticed when its lease ends"),
]

RESTARTS = 10
WORKFLOWS = 10
# Two seconds are what it should be at most; the machine of the tests has more to do.
LONGEST_RECOVERY_SECONDS = 5.0


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
                await asyncio.sleep(moments.uniform(0.1, 0.6))
                await asyncio.to_thread(own_postgres.restart_immediately)
                accepted_at.append(time.monotonic())
                await service.note_recorded()
                await load.until_answered_after(accepted_at[-1])
        recoveries = [load.seconds_to_next_answer(at) for at in accepted_at]
        show(f"the first of {len(load.answers)} answers after a crash", recoveries)

        assert {answer.status_code for answer in load.answers.values()} == {200}
        assert await service.effects() == dict.fromkeys(load.answers, 1)
        assert service.repeated_steps() == []
        assert set((await service.states()).values()) == {"SUCCESS"}
        assert max(recoveries) < LONGEST_RECOVERY_SECONDS
        assert not any("was declared dead" in server.log for server in servers)
        await assert_that_the_last_takes_work_over(service)


async def assert_that_the_last_takes_work_over(service: Service) -> None:
    """Kill the first server; the other one still notices and continues its work."""
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
    takeovers = [takeover.seconds for takeover in await service.takeovers()]
    show("taken over", takeovers)
    assert max(takeovers) < LONGEST_RECOVERY_SECONDS
    assert {entry.pid for entry in service.ledger() if entry.workflow_id in names} == {
        first.pid,
        last.pid,
    }
