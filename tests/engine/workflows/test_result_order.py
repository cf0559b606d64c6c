"""The order in which several calls ended: a replay shows the order of the first run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Coroutine
from typing import Any

import pytest
import sqlalchemy as sa
from support.interruption import Gate

from asgi_durable import Durable

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Race:
    """Two steps of which the one that is called last ends first, and a step that waits.

    Attributes:
        seen: The order that the code saw, for each run.
    """

    def __init__(self, url: str) -> None:
        self.durable = Durable(url, drain_timeout=0.0)
        self.gate = Gate()
        self.ran: list[str] = []
        self.seen: list[Any] = []
        self._loser_may_end = asyncio.Event()
        self.run = self.durable.step(name="run")(self._run)
        self.note = self.durable.step(name="note")(self._note)
        self.wait = self.durable.step(name="wait")(self.gate.wait)

    async def _run(self, name: str) -> str:
        self.ran.append(name)
        if name == "loser":
            await self._loser_may_end.wait()
        return name

    async def _note(self, name: str) -> None:
        """Record the winner in a step: with another winner the log does not fit."""
        self.seen.append(name)
        self._loser_may_end.set()

    async def interrupt(self, workflow: Any) -> None:
        """Run a workflow until it waits, and interrupt it there."""
        async with self.durable:
            await self.durable.options(workflow_id="w").start_workflow(workflow)
            await self.gate.reached.wait()

    async def resumed(self) -> Any:
        """Return the result of the next run."""
        self.gate.open()
        async with self.durable:
            return await (await self.durable.retrieve_workflow("w")).get_result(timeout=30)


async def first_of(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Return the results that are there together with the first one."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    results = [task.result() for task in tasks if task in done]
    await asyncio.gather(*tasks)
    return results


def block() -> None:
    """Keep the event loop from running other tasks."""
    time.sleep(0.05)


async def test_a_replay_sees_the_step_win_that_won(url: str) -> None:
    race = Race(url)

    @race.durable.workflow
    async def work() -> list[str]:
        loser, winner = (asyncio.create_task(race.run(name)) for name in ("loser", "winner"))
        done, _ = await asyncio.wait([loser, winner], return_when=asyncio.FIRST_COMPLETED)
        names = [task.result() for task in done]
        await race.note(names[0])
        await loser
        await race.wait()
        return names

    await race.interrupt(work)

    assert await race.resumed() == ["winner"]
    assert (race.ran, race.seen) == (["loser", "winner"], ["winner"])


async def test_a_replay_yields_results_as_completed_in_the_order_in_which_they_were(
    url: str,
) -> None:
    race = Race(url)

    @race.durable.workflow
    async def work() -> list[str]:
        names = []
        for ended in asyncio.as_completed([race.run("loser"), race.run("winner")]):
            names.append(await ended)
            await race.note(names[-1])
        await race.wait()
        return names

    await race.interrupt(work)

    assert await race.resumed() == ["winner", "loser"]


@pytest.mark.parametrize("nested", [False, True])
async def test_steps_that_end_in_one_moment_are_seen_alike_by_a_replay(
    url: str, *, nested: bool
) -> None:
    race = Race(url)
    start = asyncio.Event()

    @race.durable.step
    async def at_once(number: int) -> int:
        start.set()
        return number

    async def in_group(number: int) -> int:
        async with asyncio.TaskGroup() as group:
            return await group.create_task(at_once(number))

    branch = in_group if nested else at_once

    @race.durable.workflow
    async def work() -> list[int]:
        seen = await first_of(branch(0), branch(1), branch(2))
        race.seen.append(seen)
        await race.wait()
        return seen

    await race.interrupt(work)

    assert await race.resumed() == race.seen[0]
    assert race.seen[0] == race.seen[1]


async def test_a_replay_sees_the_child_win_that_won(url: str) -> None:
    race = Race(url)

    @race.durable.workflow
    async def child(name: str) -> str:
        return await race.run(name)

    @race.durable.workflow
    async def work() -> list[str]:
        loser, winner = (asyncio.create_task(child(name)) for name in ("loser", "winner"))
        done, _ = await asyncio.wait([loser, winner], return_when=asyncio.FIRST_COMPLETED)
        names = [task.result() for task in done]
        await race.note(names[0])
        await loser
        await race.wait()
        return names

    await race.interrupt(work)

    assert await race.resumed() == ["winner"]


async def test_a_sleep_that_is_over_since_did_not_win(url: str) -> None:
    race = Race(url)

    @race.durable.workflow
    async def work() -> list[Any]:
        timeout = asyncio.create_task(race.durable.sleep(0.5))
        winner = asyncio.create_task(race.run("winner"))
        done, _ = await asyncio.wait([timeout, winner], return_when=asyncio.FIRST_COMPLETED)
        names = [task.result() for task in done]
        await race.note(str(names[0]))
        await timeout
        await race.wait()
        return names

    await race.interrupt(work)

    assert await race.resumed() == ["winner"]


async def test_a_sleep_that_ended_first_wins_again(url: str) -> None:
    race = Race(url)

    @race.durable.workflow
    async def work() -> list[Any]:
        loser = asyncio.create_task(race.run("loser"))
        timeout = asyncio.create_task(race.durable.sleep(0.01))
        done, _ = await asyncio.wait([loser, timeout], return_when=asyncio.FIRST_COMPLETED)
        names = [task.result() for task in done]
        await race.note(str(names[0]))
        await loser
        await race.wait()
        return names

    await race.interrupt(work)

    assert await race.resumed() == [None]


@pytest.mark.parametrize("kind", ["transaction", "workflow"])
async def test_a_step_that_ends_while_another_call_commits_comes_after_it(
    url: str, kind: str
) -> None:
    race = Race(url)
    durable = race.durable
    is_over = asyncio.Event()

    @getattr(durable, kind)
    async def committed() -> str:
        is_over.set()
        return "committed"

    @durable.step
    async def step() -> str:
        await is_over.wait()
        return "step"

    @durable.workflow
    async def work() -> list[str]:
        names = await first_of(step(), committed())
        race.seen.append(names)
        await race.wait()
        return names

    await race.interrupt(work)

    assert await race.resumed() == ["committed"] == race.seen[0]


async def test_a_step_that_ends_after_a_sleep_comes_after_it_however_late_the_sleep_wakes(
    url: str,
) -> None:
    race = Race(url)

    @race.durable.step
    async def block_the_loop() -> str:
        block()
        return "step"

    @race.durable.workflow
    async def work() -> list[Any]:
        seen = await first_of(race.durable.sleep(0.01), block_the_loop())
        race.seen.append(seen)
        await race.wait()
        return seen

    await race.interrupt(work)

    assert await race.resumed() == [None] == race.seen[0]


FAILS_ONCE_AT_ITS_COMMIT = (
    "CREATE TABLE sales (name text)",
    "CREATE SEQUENCE tries",
    """CREATE FUNCTION give_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('tries') = 1 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF;
    RETURN NULL; END $$""",
    """CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON sales DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION give_up()""",
)


async def test_nobody_waits_for_the_body_of_a_transaction_that_is_run_again(
    postgres_url: str,
) -> None:
    durable = Durable(postgres_url, drain_timeout=0.0)
    tries, is_seen = asyncio.Event(), asyncio.Event()
    bodies: list[int] = []

    @durable.transaction
    async def prepare() -> None:
        for statement in FAILS_ONCE_AT_ITS_COMMIT:
            await durable.session.execute(sa.text(statement))

    @durable.transaction
    async def sell() -> None:
        await durable.session.execute(sa.text("INSERT INTO sales VALUES ('book')"))
        bodies.append(len(bodies))
        if len(bodies) == 1:
            tries.set()
        else:
            await is_seen.wait()

    @durable.step
    async def step() -> str:
        await tries.wait()
        return "seen"

    @durable.workflow
    async def work() -> str:
        selling, stepping = asyncio.create_task(sell()), asyncio.create_task(step())
        result = await stepping
        is_seen.set()
        await selling
        return result

    async with durable, asyncio.timeout(30):
        await prepare()
        assert await work() == "seen"
    assert bodies == [0, 1]


async def test_a_log_whose_times_are_wrong_is_followed_all_the_same(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    race = Race(sqlite_url)

    @race.durable.workflow
    async def work() -> list[str]:
        names = [await race.run(name) for name in ("a", "b", "c")]
        await race.wait()
        return names

    await race.interrupt(work)
    # As if the clock had been set back after the first step.
    with contextlib.closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as file, file:
        file.execute(
            "UPDATE asgi_durable_steps SET finished_at_us = finished_at_us + 3600000000 "
            "WHERE step_number = 0"
        )

    with caplog.at_level(logging.WARNING):
        assert await race.resumed() == ["a", "b", "c"]
    (line,) = [r.getMessage() for r in caplog.records if r.name.endswith("result_order")]
    assert "Workflow w" in line
