"""Several executors on one database: one runs a workflow, and all can wait for its result."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from support.databases.postgres import PostgresServer, fetch
from support.executors import (
    PATIENCE_SECONDS,
    Worker,
    beats,
    executor_of,
    kill,
    note_calls,
    query,
    result_of,
    row_of,
    storage_of,
    until,
)
from support.interruption import Gate

from asgi_durable import (
    Durable,
    StorageUnavailableError,
    WorkflowConflictError,
    WorkflowInterruptedError,
    WorkflowNotFoundError,
)
from asgi_durable.engine.recovery import own_workflows as recovery
from asgi_durable.engine.workflows import result_waiters as outcomes
from asgi_durable.storage.writes import RecordStep, Write

pytestmark = pytest.mark.anyio

LONG_SECONDS = 600.0


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@dataclasses.dataclass
class Invoice:
    lines: tuple[int, ...]


class UnpaidError(Exception):
    """An error of the application."""


# One executor runs a workflow, others wait for it


async def test_a_second_call_elsewhere_waits_for_the_outcome_of_the_first(url: str) -> None:
    async with Worker(url, waits=True) as first, Worker(url) as second:
        await first.begin("w")
        reads = note_calls(second, "get_workflow")
        call = asyncio.ensure_future(second.options(workflow_id="w").run_workflow(second.work))
        await until(lambda: reads)
        first.gate.open()

        assert await call == [0, 1, 2]
        assert second.began == []
        assert await row_of(url, "w", "attempts") == (1,)


async def test_a_start_of_what_runs_elsewhere_returns_its_handle(url: str) -> None:
    async with Worker(url, waits=True) as first, Worker(url) as second:
        await first.begin("w")
        handle = await second.options(workflow_id="w").start_workflow(second.work)
        first.gate.open()

        assert handle.workflow_id == "w"
        assert await handle.get_result(timeout=PATIENCE_SECONDS) == [0, 1, 2]
    assert second.began == []


async def test_a_workflow_may_start_what_runs_elsewhere(url: str) -> None:
    async with Worker(url, waits=True) as first, Worker(url) as second:

        @second.step
        async def step() -> None: ...

        @second.workflow
        async def parent() -> str:
            handle = await second.options(workflow_id="w").start_workflow(second.work)
            await step()
            return handle.workflow_id

        await first.begin("w")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await parent() == "w"
        first.gate.open()
        assert await result_of(second, "w") == [0, 1, 2]
    assert second.began == []


async def test_calls_of_one_id_on_all_executors_at_once_run_it_once(url: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(Worker(url)) for _ in range(3)]
        calls = (w.options(workflow_id="w").run_workflow(w.work) for w in workers for _ in "ab")

        assert await asyncio.gather(*calls) == [[0, 1, 2]] * 6
        began = [step for worker in workers for step in worker.began]
        assert sorted(began) == [("w", 0), ("w", 1), ("w", 2)]


async def test_a_wait_that_times_out_leaves_the_workflow_alone(url: str) -> None:
    async with Worker(url, waits=True) as first, Worker(url) as second:
        await first.begin("w")
        handle = await second.retrieve_workflow("w")
        with pytest.raises(TimeoutError):
            await handle.get_result(timeout=0.01)
        first.gate.open()

        assert await handle.get_result(timeout=PATIENCE_SECONDS) == [0, 1, 2]


async def test_results_and_errors_come_back_with_their_types(url: str) -> None:
    def build() -> tuple[Durable, Any, Any]:
        durable = Durable(url, drain_timeout=0.0)
        durable.register_type(UnpaidError)

        @durable.workflow(name="bill")
        async def bill() -> Invoice:
            return Invoice((1, 2))

        @durable.workflow(name="collect")
        async def collect() -> None:
            raise UnpaidError("five euros")

        return durable, bill, collect

    (first, bill, collect), (second, _, _) = build(), build()
    async with first, second:
        await first.options(workflow_id="bill").run_workflow(bill)
        with pytest.raises(UnpaidError):
            await first.options(workflow_id="collect").run_workflow(collect)

        assert await result_of(second, "bill") == Invoice((1, 2))
        with pytest.raises(UnpaidError, match="five euros"):
            await result_of(second, "collect")


async def test_another_function_under_an_id_that_runs_elsewhere_is_refused(url: str) -> None:
    async with Worker(url, waits=True) as first, Worker(url) as second:
        await first.begin("w")

        @second.workflow
        async def other() -> None: ...

        with pytest.raises(WorkflowConflictError):
            await second.options(workflow_id="w").run_workflow(other)
        with pytest.raises(WorkflowConflictError):
            await second.options(workflow_id="w").start_workflow(other)
        first.gate.open()
        assert await result_of(first, "w") == [0, 1, 2]


async def test_nobody_waits_for_what_does_not_exist(url: str) -> None:
    async with Worker(url) as first, Worker(url) as second:
        await first.options(workflow_id="w").run_workflow(first.work)
        with pytest.raises(WorkflowNotFoundError):
            await second.retrieve_workflow("v")


# Messages between executors


@pytest.mark.needs_sessions("messages need LISTEN")
async def test_who_waits_is_told_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "FIRST_POLL_SECONDS", LONG_SECONDS)
    monkeypatch.setattr(outcomes, "LONGEST_POLL_SECONDS", LONG_SECONDS)
    async with Worker(postgres_url, waits=True) as first, Worker(postgres_url) as second:
        await first.begin("w")
        asked: list[str] = []
        executor = executor_of(first)
        on_message = executor.on_message
        executor.on_message = lambda message: asked.append(message) or on_message(message)
        waiting = asyncio.ensure_future(result_of(second, "w"))
        await until(lambda: asked)
        first.gate.open()

        assert await waiting == [0, 1, 2]


@pytest.mark.parametrize("loses", ["first", "second"])
async def test_who_waits_is_answered_though_all_hints_get_lost(url: str, loses: str) -> None:
    async def lose(executor_id: str | None, message: str) -> None: ...

    async with Worker(url, waits=True) as first, Worker(url) as second:
        loser: Any = storage_of(first if loses == "first" else second)
        loser.send = lose
        await first.begin("w")
        reads = note_calls(second, "get_workflow")
        waiting = asyncio.ensure_future(result_of(second, "w"))
        await until(lambda: len(reads) >= 2)
        first.gate.open()

        assert await waiting == [0, 1, 2]


@pytest.mark.parametrize(
    "message", ["", "has-ended", "has-ended unknown", "asks-for", "asks-for x", "asks-for x y z"]
)
async def test_messages_that_make_no_sense_do_no_harm(postgres_url: str, message: str) -> None:
    async with Worker(postgres_url) as first, Worker(postgres_url) as second:
        await storage_of(second).send(executor_of(first).id, message)
        await storage_of(second).send(None, message)
        await beats(first, 2)

        assert await first.work() == [0, 1, 2]


async def test_a_wait_for_an_owner_without_a_run_does_not_run_hot(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", LONG_SECONDS)
    first, second = Worker(url, waits=True, storage_patience=0.01), Worker(url)
    async with second, first:
        await first.begin("w")
        writing: Any = storage_of(first)

        async def fail(batch: object) -> None:
            raise StorageUnavailableError

        writing.commit = fail
        first.gate.open()
        await until(lambda: first.engine._running.active.find("w") is None)  # type: ignore[union-attr]
        del writing.commit
        handle = await second.retrieve_workflow("w")
        reads = note_calls(second, "get_workflow")
        with pytest.raises(TimeoutError):
            await handle.get_result(timeout=1.0)

    assert len(reads) <= 10


# Children that another executor runs


class Family:
    """A parent that calls a child under an id, and returns an error as its result."""

    def __init__(self, url: str, *, child_step: str = "step") -> None:
        self.durable = durable = Durable(url, drain_timeout=0.0)
        self.gate = Gate()

        @durable.step(name=child_step)
        async def step() -> None: ...

        @durable.workflow(name="child")
        async def child() -> str:
            await step()
            await self.gate.wait()
            return "child's"

        @durable.workflow(name="caller")
        async def caller() -> str:
            try:
                return await durable.options(workflow_id="c").run_workflow(child)
            except Exception as error:
                return f"swallowed {error!r}"

        @durable.workflow(name="waiter")
        async def waiter() -> str:
            try:
                handle = await durable.retrieve_workflow("c")
                result: str = await handle.get_result()
            except Exception as error:
                return f"swallowed {error!r}"
            return result

        self.child, self.caller, self.waiter = child, caller, waiter


@pytest.mark.parametrize("how", ["caller", "waiter"])
async def test_a_failing_storage_is_no_outcome_of_a_child_elsewhere(
    url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", 0.01)
    one, other = Family(url), Family(url)
    async with one.durable as first, other.durable as second:
        await first.options(workflow_id="c").start_workflow(one.child)
        await one.gate.reached.wait()
        storage: Any = storage_of(second)
        failures: list[str] = []

        async def fail_once(workflow_id: str) -> Any:
            if workflow_id == "c" and not failures:
                failures.append(workflow_id)
                raise StorageUnavailableError
            return await type(storage).get_workflow(storage, workflow_id)

        storage.get_workflow = fail_once
        await second.options(workflow_id="p").start_workflow(getattr(other, how))
        await until(lambda: failures)
        one.gate.open()

        assert await result_of(first, "p") == "child's"


@pytest.mark.parametrize(
    ("method", "child_id"), [("commit", None), ("commit", "c"), ("get_workflow", "w")]
)
async def test_a_start_that_the_storage_fails_is_no_outcome_of_who_starts_it(
    url: str, method: str, child_id: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", 0.01)
    first, second = Worker(url, waits=True), Worker(url, storage_patience=0.01)
    failures: list[str] = []

    @second.step
    async def step() -> None:
        if failures:
            return
        storage: Any = storage_of(second)

        async def fail_once(*args: Any) -> Any:
            # After the step it commits the step's record and the child's start.
            delattr(storage, method)
            failures.append(method)
            raise StorageUnavailableError

        setattr(storage, method, fail_once)

    @second.workflow
    async def parent() -> str:
        await step()
        try:
            await second.options(workflow_id=child_id).start_workflow(second.work)
        except Exception as error:
            return f"swallowed {error!r}"
        return "started"

    async with first, second:
        await first.begin("w")
        await second.options(workflow_id="p").start_workflow(parent)

        assert await result_of(first, "p") == "started"
        assert failures == [method]
        first.gate.open()


@pytest.mark.parametrize("how", ["caller", "waiter"])
async def test_what_this_code_cannot_run_is_no_outcome_for_who_waits_for_it(
    url: str, how: str
) -> None:
    old, new = Family(url), Family(url, child_step="another")
    async with old.durable as durable:
        await durable.options(workflow_id="c").start_workflow(old.child)
        await old.gate.reached.wait()

    async with new.durable as durable:
        with pytest.raises(Exception, match="another"):
            await result_of(durable, "c")
        start = durable.options(workflow_id="p").start_workflow(getattr(new, how))
        await asyncio.wait([asyncio.ensure_future(start)], timeout=0.3)
        assert await row_of(url, "p", "state") == ("PENDING",)

        able = Family(url)
        able.gate.open()
        async with able.durable:
            assert await result_of(able.durable, "p") == "child's"


async def test_a_workflow_does_not_end_when_its_last_record_was_lost(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", 0.01)
    async with Worker(url, storage_patience=0.01) as durable:
        lost: list[object] = []

        @durable.step
        async def step() -> None: ...

        @durable.workflow
        async def work() -> str:
            await step()
            # Code between the last step and the end, while the storage fails: it runs twice.
            await until(lambda: len(lost) == 2)
            return "done"

        storage: Any = storage_of(durable)
        commit = storage.commit

        async def lose_the_record(batch: Sequence[Write]) -> Any:
            records = [write for write in batch if isinstance(write, RecordStep)]
            if records and len(lost) < 2:
                lost.extend(records)
                raise StorageUnavailableError
            return await commit(batch)

        storage.commit = lose_the_record
        await durable.options(workflow_id="w").start_workflow(work)
        assert await result_of(durable, "w") == "done"

    assert await query(url, "SELECT count(*) FROM asgi_durable_steps") == [(1,)]
    assert await row_of(url, "w", "attempts") == (2,)


# Leases


async def test_a_blocked_event_loop_keeps_the_lease(url: str) -> None:
    async with Worker(url, waits=True, lease=2.0) as first, Worker(url) as second:
        await first.begin("w")
        executor_id = executor_of(first).id
        time.sleep(3.0)  # noqa: ASYNC251  real code may block, too
        first.gate.open()

        assert await result_of(second, "w") == [0, 1, 2]
        assert executor_of(first).id == executor_id
    assert second.began == []


async def test_a_lease_may_be_shorter_than_the_time_between_beats(url: str) -> None:
    first, second = Worker(url, lease=1.5), Worker(url)
    async with second, first:
        executor_id = executor_of(first).id
        # The second one sees the end of the lease, whenever it comes.
        storage_of(second).beat_interval_seconds = 0.05
        await beats(second, 40)

        assert executor_of(first).id == executor_id


@pytest.mark.needs_sessions("where nothing is prepared each statement has a BEGIN and a COMMIT")
async def test_an_idle_process_asks_its_database_once_a_second(
    own_postgres: PostgresServer, own_postgres_url: str
) -> None:
    async with Worker(f"{own_postgres_url}&log_statement=all") as durable:
        await durable.work()
        await beats(durable, 1)
        before = len(own_postgres.log)
        await beats(durable, 4)
        lines = own_postgres.log[before:].splitlines()

    statements = [line for line in lines if "LOG:  execute" in line or "LOG:  statement:" in line]
    assert 1 <= len(statements) <= 5, statements


# Starting and stopping


def own_threads() -> set[str]:
    """Return the threads that an instance on any database may have."""
    return {t.name for t in threading.enumerate() if t is not threading.main_thread()}


async def test_nothing_is_left_after_a_stop(url: str) -> None:
    before = own_threads()
    for _ in range(2):
        async with Worker(url) as durable:
            assert await durable.work() == [0, 1, 2]
            assert any("heartbeat" in name for name in own_threads() - before)

    await until(lambda: own_threads() <= before)
    assert await query(url, "SELECT 1 FROM asgi_durable_executors") == []


@pytest.mark.needs_sessions("the server's connections are the pooler's")
async def test_no_connection_is_left_after_a_stop(postgres_url: str) -> None:
    server = postgres_url.partition("?")[0]
    connected = "SELECT pid FROM pg_stat_activity WHERE application_name = 'stops'"
    async with Worker(f"{postgres_url}&application_name=stops") as durable:
        await durable.work()
        assert await fetch(server, connected) != []

    async def have_ended() -> bool:
        return await fetch(server, connected) == []

    await until(have_ended)


async def test_a_stop_leaves_its_work_although_it_cannot_say_goodbye(url: str) -> None:
    async def fail(executor_id: str) -> None:
        raise StorageUnavailableError

    async with Worker(url) as second:
        async with Worker(url, waits=True) as first:
            await first.begin("w")
            storage: Any = storage_of(first)
            storage.retire = fail

        assert await result_of(second, "w") == [0, 1, 2]


async def test_a_stop_ends_though_the_database_is_gone(
    own_postgres: PostgresServer, own_postgres_url: str
) -> None:
    before = own_threads()
    worker = Worker(own_postgres_url, waits=True, storage_patience=0.1)
    await worker.engine.start()
    await worker.begin("w")
    own_postgres.stop()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await worker.engine.stop()
        await until(lambda: own_threads() <= before)
    finally:
        own_postgres.start()

    second = Worker(own_postgres_url)
    await until(lambda: starts(second))
    async with second:
        assert await result_of(second, "w") == [0, 1, 2]


async def starts(worker: Worker) -> bool:
    """Start; a pooler takes a moment to notice that its server runs again."""
    try:
        await worker.engine.start()
    except StorageUnavailableError:
        return False
    return True


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16, 32, 64])
async def test_a_stop_that_is_cancelled_can_be_made_again(url: str, turns: int) -> None:
    before = own_threads()
    worker = Worker(url)
    await worker.engine.start()
    worker.engine.recover()
    stop = asyncio.ensure_future(worker.engine.stop())
    for _ in range(turns):
        await asyncio.sleep(0)
    stop.cancel()
    await asyncio.wait([stop])
    await worker.engine.stop()

    await until(lambda: own_threads() <= before)
    async with worker:
        assert await worker.work() == [0, 1, 2]


async def test_who_waits_for_a_run_that_a_stop_interrupts_is_told_so(url: str) -> None:
    async with Worker(url, waits=True) as worker:
        await worker.begin("w")
        waiting = asyncio.ensure_future(result_of(worker, "w"))
        await asyncio.sleep(0)

    with pytest.raises((WorkflowInterruptedError, StorageUnavailableError)):
        await waiting


async def test_migrate_creates_the_tables_and_nothing_else(url: str) -> None:
    before = own_threads()
    durable = Worker(url)
    await durable.migrate()
    await durable.migrate()

    await until(lambda: own_threads() <= before)
    for table in ("workflows", "steps", "responses", "executors"):
        assert await query(url, f"SELECT * FROM asgi_durable_{table}") == []
    assert durable.engine._running is None
    async with durable:
        assert await durable.work() == [0, 1, 2]


# Event loops


def test_a_takeover_moves_to_the_event_loop_that_lives(sqlite_url: str) -> None:
    worker = Worker(sqlite_url)

    async def serve() -> None:
        await worker.engine.ensure_started()

    async def leave() -> None:
        other = Worker(sqlite_url, waits=True)
        async with other:
            await other.begin("w")

    async def serve_until_taken_over() -> list[int]:
        await worker.engine.ensure_started()
        result: list[int] = await result_of(worker, "w")
        await worker.engine.stop()
        return result

    asyncio.run(serve())
    asyncio.run(leave())
    assert asyncio.run(serve_until_taken_over()) == [0, 1, 2]
    assert worker.began == [("w", 1), ("w", 2)]


def test_what_was_taken_over_on_an_event_loop_that_ended_goes_on_on_the_next(
    sqlite_url: str,
) -> None:
    worker = Worker(sqlite_url, waits=True)

    async def leave() -> None:
        async with Worker(sqlite_url, waits=True) as other:
            await other.begin("w")

    async def take_over() -> None:
        await worker.engine.ensure_started()
        await worker.is_at_gate("w")

    async def finish() -> list[int]:
        worker.gate.open()
        await worker.engine.ensure_started()
        result: list[int] = await result_of(worker, "w")
        await worker.engine.stop()
        return result

    asyncio.run(leave())
    asyncio.run(take_over())
    assert asyncio.run(finish()) == [0, 1, 2]
    assert worker.began == [("w", 1), ("w", 1), ("w", 2)]


def test_a_takeover_that_an_event_loop_leaves_behind_is_taken_up_on_the_next(
    sqlite_url: str,
) -> None:
    worker = Worker(sqlite_url)
    taking = threading.Event()

    async def leave() -> None:
        async with Worker(sqlite_url, waits=True) as other:
            await other.begin("w")

    async def take_over_in_vain() -> None:
        await worker.engine.start()
        storage: Any = storage_of(worker)

        async def hang(*args: Any, **kwargs: Any) -> None:
            del storage.take_over
            taking.set()
            await asyncio.Event().wait()

        storage.take_over = hang
        worker.engine.recover()
        await until(taking.is_set)

    async def finish() -> list[int]:
        await worker.engine.ensure_started()
        result: list[int] = await result_of(worker, "w")
        await worker.engine.stop()
        return result

    asyncio.run(leave())
    # Closed without cancelling its tasks, as by a host that freezes its functions.
    loop = asyncio.new_event_loop()
    loop.run_until_complete(take_over_in_vain())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert asyncio.run(finish()) == [0, 1, 2]


def test_an_event_loop_that_ends_leaves_no_connection_behind(postgres_url: str) -> None:
    worker = Worker(postgres_url)

    async def serve() -> None:
        await worker.engine.ensure_started()
        assert await worker.work() == [0, 1, 2]

    asyncio.run(serve())
    asyncio.run(serve())
    asyncio.run(worker.engine.stop())
    # An open connection causes a warning now, and the tests raise warnings as errors.
    gc.collect()


async def test_executors_on_one_database_are_killed_and_started_again_and_again(url: str) -> None:
    async with Worker(url) as observer:
        for number in range(3):
            worker = Worker(url, waits=True)
            await worker.engine.start()
            await worker.begin(f"w{number}")
            await kill(worker)

        for number in range(3):
            assert await result_of(observer, f"w{number}") == [0, 1, 2]
