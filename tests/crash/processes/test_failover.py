"""A Postgres that dies for good under load, and whose synchronous standby takes its place."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.databases.postgres import PostgresServer, with_schema
from support.databases.standby import StandbyServer
from support.processes.counting import Service, new_seed, show
from support.processes.load import Load

pytestmark = [pytest.mark.anyio, pytest.mark.measures_time]

LONGEST_RECOVERY_SECONDS = 5.0


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"synchronous_commit": "on"}) as server:
        yield server


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[StandbyServer]:
    with StandbyServer(primary) as server:
        yield server


async def test_what_was_acknowledged_is_kept_and_work_goes_on_at_the_standby(
    tmp_path: Path, primary: PostgresServer, standby: StandbyServer
) -> None:
    await standby.become_synchronous()
    seed = new_seed()
    moments = random.Random(seed)
    service = Service(tmp_path, with_schema(standby.url_of_both(), "failover"))
    load = Load(service, seed)
    with service.running() as servers:
        async with load.running():
            await load.until_answered_after(time.monotonic())
            await asyncio.sleep(moments.uniform(0.5, 1.5))
            await service.note_recorded()
            acknowledged = set(load.answers)
            primary.kill()
            await asyncio.sleep(moments.uniform(0.0, 1.0))
            await standby.promote()
            promoted_at = time.monotonic()
            await load.until_answered_after(promoted_at)
            await asyncio.sleep(0.5)
        seconds = load.seconds_to_next_answer(promoted_at)
        show("the first answer after the promotion", [seconds])

        assert {answer.status_code for answer in load.answers.values()} == {200}
        assert acknowledged
        assert await service.effects() == dict.fromkeys(load.answers, 1)
        assert service.repeated_steps() == []
        assert set((await service.states()).values()) == {"SUCCESS"}
        assert seconds < LONGEST_RECOVERY_SECONDS
        assert not any("was declared dead" in server.log for server in servers)
