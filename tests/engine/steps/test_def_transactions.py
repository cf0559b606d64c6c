"""Transactions of ``def`` functions: in their thread, committed with their records."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.threads import ThreadGate, in_thread

from asgi_durable import (
    Durable,
    DurableUsageError,
    WorkflowInterruptedError,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def effects(durable: Durable, tmp_path: Path) -> Callable[[], list[str]]:
    @durable.transaction
    async def create() -> None:
        await durable.session.execute(sa.text("CREATE TABLE effects (name TEXT UNIQUE)"))

    await create()

    def read() -> list[str]:
        connection = sqlite3.connect(tmp_path / "test.db")
        rows = connection.execute("SELECT name FROM effects ORDER BY rowid").fetchall()
        connection.close()
        return [name for (name,) in rows]

    return read


def inserter(durable: Durable) -> Callable[[str], str]:
    @durable.transaction
    def insert(name: str) -> str:
        durable.blocking.session.execute(sa.text("INSERT INTO effects VALUES (:n)"), {"n": name})
        return name.upper()

    return insert


async def test_a_transaction_commits_with_its_record(
    durable: Durable, effects: Callable[[], list[str]]
) -> None:
    insert = inserter(durable)

    @durable.workflow
    def work() -> str:
        return insert("a")

    for _ in range(2):
        blocking = durable.blocking.options(workflow_id="w")
        assert await in_thread(blocking.run_workflow, work) == "A"
    assert effects() == ["a"]


async def test_a_transaction_is_replayed_after_a_restart(
    durable: Durable, effects: Callable[[], list[str]]
) -> None:
    insert, gate = inserter(durable), ThreadGate()

    @durable.step
    def wait() -> None:
        if not gate.opened.is_set():
            gate.wait()

    @durable.workflow
    def work() -> str:
        result = insert("once")
        wait()
        return result

    await durable.options(workflow_id="w").start_workflow(work)
    await gate.is_reached()
    await durable.engine.stop()
    gate.opened.set()
    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "ONCE"
    assert effects() == ["once"]


async def test_a_transaction_that_fails_leaves_nothing_and_is_recorded(
    durable: Durable, effects: Callable[[], list[str]]
) -> None:
    runs = []

    @durable.transaction
    def fail() -> None:
        runs.append(1)
        durable.blocking.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
        raise ValueError("business")

    @durable.workflow
    def work() -> None:
        fail()

    for _ in range(2):
        with pytest.raises(ValueError, match="business"):
            await in_thread(durable.blocking.options(workflow_id="w").run_workflow, work)
    assert effects() == []
    assert len(runs) == 1


async def test_a_transaction_that_ends_after_the_stop_is_rolled_back(
    durable: Durable, effects: Callable[[], list[str]]
) -> None:
    gate = ThreadGate()
    runs: list[int] = []

    @durable.transaction
    def insert() -> None:
        durable.blocking.session.execute(sa.text("INSERT INTO effects VALUES ('once')"))
        runs.append(1)
        gate.wait()

    @durable.workflow
    def work() -> None:
        insert()

    await durable.options(workflow_id="w").start_workflow(work)
    await gate.is_reached()
    # Stopping the engine would wait for the write lock, which the thread holds.
    run = durable.engine.running().active.find("w")
    assert run is not None
    run.stop(WorkflowInterruptedError("w", "the test stops it"), retry_here=True)
    gate.opened.set()
    await (await durable.retrieve_workflow("w")).get_result()

    assert effects() == ["once"]
    assert len(runs) == 2


async def test_a_plain_transaction_and_one_inside_it_share_a_session(
    durable: Durable, effects: Callable[[], list[str]]
) -> None:
    insert = inserter(durable)

    @durable.transaction
    def outer() -> None:
        insert("inner")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await in_thread(outer)
    assert effects() == []
    await in_thread(insert, "plain")
    assert effects() == ["plain"]


async def test_async_and_other_transactions_do_not_share_a_session(
    durable: Durable, effects: Callable[[], list[str]]
) -> None:
    insert = inserter(durable)

    @durable.transaction
    async def outer() -> None:
        await durable.run_step(insert, "x")

    with pytest.raises(DurableUsageError, match="share a session"):
        await outer()
    assert effects() == []


async def test_threads_with_transactions_write_in_turn(
    durable: Durable, effects: Callable[[], list[str]]
) -> None:
    insert = inserter(durable)

    @durable.workflow
    def work(number: int) -> str:
        return insert(str(number))

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(20) as pool:
        await asyncio.gather(*(loop.run_in_executor(pool, work, n) for n in range(60)))

    assert sorted(effects()) == sorted(map(str, range(60)))
