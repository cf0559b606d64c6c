"""Log lines of the engine: its start and stop, and failures, each logged once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest
from support.executors import Worker, note_calls, result_of, until
from support.interruption import Gate

from asgi_durable import Durable, RetryPolicy
from asgi_durable.engine.recovery import unknown_functions
from asgi_durable.storage.postgres import PostgresStorage
from asgi_durable.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio

SECRET = "4111-1111"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Lines:
    """The log lines of the library so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def of(self, level: int) -> list[logging.LogRecord]:
        records = self._caplog.records
        return [r for r in records if r.levelno == level and r.name.startswith("asgi_durable")]

    def texts(self, level: int) -> list[str]:
        return [record.getMessage() for record in self.of(level)]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, "asgi_durable")
    return Lines(caplog)


async def test_a_start_and_a_stop_name_database_version_and_executor(
    url: str, lines: Lines
) -> None:
    async with Durable(url) as durable:
        executor_id = durable.engine.running().services.executor.id
    started, stopped = lines.texts(logging.INFO)
    assert "asgi-durable 0." in started
    kind = "SQLite /" if url.startswith("sqlite") else "Postgres "
    assert all(word in started for word in (kind, executor_id))
    assert "://" not in started
    assert "stopped" in stopped
    assert executor_id in stopped


async def test_databases_are_named_whole_and_without_passwords(
    sqlite_url: str, lines: Lines
) -> None:
    async with Durable(sqlite_url, application_url=sqlite_url.replace("test.db", "shop.db")):
        pass
    text = lines.texts(logging.INFO)[0]
    assert "/test.db with application database SQLite /" in text
    assert "/shop.db, executor" in text
    postgres = PostgresStorage("postgresql://ada:secret@db1:5433,db2/shop?password=secret")
    assert postgres.name == "Postgres db1:5433,db2/shop"
    assert SQLiteStorage("sqlite:///here.db").name == f"SQLite {Path.cwd()}/here.db"
    assert SQLiteStorage("sqlite://").name == "SQLite in memory"


async def test_what_is_interrupted_and_taken_over_is_named_within_bounds(
    url: str, lines: Lines
) -> None:
    ids = [f"w{number:02}" for number in range(12)]
    async with Worker(url, waits=True) as first:
        await first.begin(*ids)
    async with Worker(url) as second:
        for workflow_id in ids:
            await result_of(second, workflow_id)

    texts = lines.texts(logging.INFO)
    (interrupted,) = (text for text in texts if text.startswith("Interrupted"))
    taken = [text for text in texts if text.startswith("Taken over from other processes")]
    for text in (interrupted, *taken[:1]):
        assert "12 workflows: " in text
        assert "(work)" in text
        assert text.endswith("and 2 more")
    assert len(taken) == 1


async def test_each_retry_of_a_step_is_a_warning(url: str, lines: Lines) -> None:
    async with Durable(url) as durable:

        @durable.step(name="pay", retry=RetryPolicy(max_attempts=3, initial_interval=0.0))
        async def pay(card: str) -> None:
            raise ConnectionError("the bank\nis away " + "x" * 1000)

        @durable.workflow(name="order")
        async def order(card: str) -> None:
            with contextlib.suppress(Exception):
                await pay(card)

        await durable.options(workflow_id="w").run_workflow(order, SECRET)
    first, second = lines.texts(logging.WARNING)
    assert first.startswith("Workflow w (order): attempt 1 of 3 of step 'pay' failed, the next one")
    assert "in 0.0 s: ConnectionError: the bank is away" in first
    assert "attempt 2 of 3" in second
    assert all(len(text) < 500 and SECRET not in text for text in (first, second))


async def test_a_failure_that_nobody_waits_for_is_an_error_with_its_traceback(
    url: str, lines: Lines
) -> None:
    async with Durable(url) as durable:
        over = asyncio.Event()

        @durable.workflow(name="fails")
        async def fails(card: str) -> None:
            over.set()
            raise LookupError("no card")

        await durable.options(workflow_id="w").start_workflow(fails, SECRET)
        await over.wait()
        await until(lambda: lines.of(logging.ERROR) != [])

        (record,) = lines.of(logging.ERROR)
        assert record.getMessage().startswith("Workflow w (fails) failed, and nobody waits for it")
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], LookupError)
        assert SECRET not in record.getMessage()
        with pytest.raises(LookupError):
            await result_of(durable, "w")
    assert len(lines.of(logging.ERROR)) == 1


async def test_who_waits_for_a_failure_is_told_and_the_log_is_not(url: str, lines: Lines) -> None:
    gate = Gate()
    async with Durable(url) as durable:

        @durable.workflow
        async def fails(*, waits: bool) -> None:
            if waits:
                await gate.wait()
            raise LookupError("no card")

        @durable.workflow
        async def parent() -> None:
            with contextlib.suppress(LookupError):
                await fails(waits=False)

        await parent()
        with pytest.raises(LookupError):
            await fails(waits=False)
        handle = await durable.start_workflow(fails, waits=True)
        waiting = asyncio.ensure_future(handle.get_result())
        run = durable.engine.running().active.find(handle.workflow_id)
        await until(lambda: run is not None and run.done.has_waiters())
        gate.open()
        with pytest.raises(LookupError):
            await waiting
    assert lines.of(logging.ERROR) == []


async def test_a_recovered_workflow_that_fails_is_an_error(url: str, lines: Lines) -> None:
    gate = Gate()

    def build() -> tuple[Durable, Any]:
        durable = Durable(url, drain_timeout=0.0)

        @durable.workflow(name="fails")
        async def fails() -> None:
            await gate.wait()
            raise LookupError("no card")

        return durable, fails

    durable, fails = build()
    async with durable:
        calling = asyncio.ensure_future(durable.options(workflow_id="w").run_workflow(fails))
        await gate.reached.wait()
    await asyncio.wait([calling])
    calling.exception()
    gate.open()
    durable, _ = build()
    async with durable:
        await until(lambda: lines.of(logging.ERROR) != [])
    assert "Workflow w (fails) failed" in lines.texts(logging.ERROR)[0]


async def test_a_workflow_that_does_not_fit_its_log_is_one_warning(url: str, lines: Lines) -> None:
    gate = Gate()

    def build(first_step: str) -> Durable:
        durable = Durable(url, drain_timeout=0.0)

        @durable.step(name=first_step)
        async def begin() -> None: ...

        @durable.step
        async def wait() -> None:
            await gate.wait()

        @durable.workflow(name="work")
        async def work() -> None:
            await begin()
            await wait()

        durable.work = work  # type: ignore[attr-defined]
        return durable

    async with build("old") as durable:
        await durable.options(workflow_id="w").start_workflow(durable.work)  # type: ignore[attr-defined]
        await gate.reached.wait()
    async with build("new") as durable:
        await until(lambda: lines.of(logging.WARNING) != [])
        for _ in range(2):
            # It is run again, and nothing new is logged.
            with pytest.raises(Exception, match="step log holds"):
                await durable.options(workflow_id="w").run_workflow(durable.work)  # type: ignore[attr-defined]
    (text,) = lines.texts(logging.WARNING)
    assert text.startswith("Workflow w (work) cannot continue in this process")
    assert "NonDeterministicWorkflowError" in text
    assert all(name in text for name in ("'old'", "'new'"))


async def test_workflows_of_an_unknown_function_are_one_warning(
    url: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_LOOK_SECONDS", "CONFIRM_SECONDS", "LOOK_INTERVAL_SECONDS"):
        monkeypatch.setattr(unknown_functions, name, 0.0)
    async with Worker(url, waits=True) as first:
        await first.begin("w1", "w2")
    async with Durable(url) as other:

        @other.workflow(name="renamed")
        async def renamed() -> None: ...

        await until(lambda: lines.of(logging.WARNING) != [])
        looks = note_calls(other, "list_unknown")
        await until(lambda: len(looks) >= 3)
        async with Worker(url) as third:
            assert await result_of(third, "w1") == await result_of(third, "w2") == [0, 1, 2]
    (text,) = lines.texts(logging.WARNING)
    assert "No function is registered as 'work', so no process continues 2 workflows" in text
    assert "w1 (work), w2 (work)" in text


async def test_workflows_of_functions_that_another_process_has_are_no_warning(
    url: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_LOOK_SECONDS", "CONFIRM_SECONDS"):
        monkeypatch.setattr(unknown_functions, name, 0.0)
    monkeypatch.setattr(unknown_functions, "LOOK_INTERVAL_SECONDS", 0.0)
    async with Worker(url, waits=True) as first, Durable(url) as other:
        await first.begin("w")
        looks = note_calls(other, "list_unknown")
        await until(lambda: len(looks) >= 3)
        first.gate.open()
        await result_of(first, "w")
    assert lines.of(logging.WARNING) == []
