"""Taking over: living executors continue the workflows of stopped and dead ones."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from support.executors import (
    PATIENCE_SECONDS,
    Worker,
    beats,
    declared_dead,
    executor_of,
    is_another,
    kill,
    query,
    result_of,
    row_of,
    storage_of,
    until,
)
from support.interruption import Gate

from asgi_durable import (
    DecodeError,
    Durable,
    NonDeterministicWorkflowError,
    RecoveryAttemptsExceededError,
    StorageUnavailableError,
    WorkflowInterruptedError,
)
from asgi_durable.engine.recovery import own_workflows as recovery
from asgi_durable.engine.recovery import takeover

pytestmark = pytest.mark.anyio

LONG_SECONDS = 600.0


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@dataclasses.dataclass
class Parcel:
    number: int


# Executors that stopped or died


async def test_what_a_stopped_executor_left_goes_on_elsewhere_without_a_call(url: str) -> None:
    first, second = Worker(url, waits=True), Worker(url)
    async with second:
        async with first:
            await first.begin("w")

        assert await result_of(second, "w") == [0, 1, 2]

    assert first.began == [("w", 0), ("w", 1)]
    assert second.began == [("w", 1), ("w", 2)]
    assert await row_of(url, "w", "attempts, crashes") == (2, 0)


@pytest.mark.needs_sessions("messages need LISTEN")
async def test_a_stop_is_told_to_the_others_at_once(postgres_url: str) -> None:
    first, second = Worker(postgres_url, waits=True), Worker(postgres_url)
    async with second:
        async with first:
            await first.begin("w")
            await beats(second, 1)
            # From now on the second one looks for workflows only after a message.
            storage_of(second).beat_interval_seconds = LONG_SECONDS
            executor_of(second).beat_soon()
            await beats(second, 1)

        assert await result_of(second, "w") == [0, 1, 2]


async def test_what_a_killed_executor_left_goes_on_elsewhere(url: str) -> None:
    first, second = Worker(url, waits=True), Worker(url)
    async with second:
        await first.engine.start()
        await first.begin("w")
        await kill(first)

        assert await result_of(second, "w") == [0, 1, 2]

    assert second.began == [("w", 1), ("w", 2)]
    assert await row_of(url, "w", "attempts, crashes") == (2, 1)


async def test_each_owner_is_counted_and_no_recorded_step_runs_again(url: str) -> None:
    workers = [Worker(url, waits=True) for _ in range(3)]
    async with workers[0]:
        await workers[0].begin("w")
    for worker in workers[1:]:
        async with worker:
            await worker.is_at_gate("w")

    async with Worker(url) as last:
        assert await result_of(last, "w") == [0, 1, 2]
        status = await (await last.retrieve_workflow("w")).get_status()

    assert status.attempts == 4
    assert [worker.began for worker in workers[1:]] == [[("w", 1)]] * 2


async def test_an_executor_takes_over_what_was_left_before_it_started(url: str) -> None:
    async with Worker(url, waits=True) as first:
        await first.begin("w1", "w2")

    async with Worker(url) as second:
        assert await result_of(second, "w1") == await result_of(second, "w2") == [0, 1, 2]


# Executors that cannot run a workflow


async def test_a_workflow_is_left_for_a_process_that_knows_its_function(url: str) -> None:
    async with Durable(url) as ignorant:
        async with Worker(url, waits=True) as first:
            await first.begin("w")
        await beats(ignorant, 3)
        assert await row_of(url, "w", "state, attempts") == ("PENDING", 1)

        async with Worker(url):
            assert await result_of(ignorant, "w") == [0, 1, 2]


class Version:
    """A release of an application whose only workflow differs from that of the next release."""

    def __init__(self, url: str, change: str, gate: Gate, *, is_new: bool) -> None:
        self.durable = durable = Durable(url, drain_timeout=0.0)

        @durable.step(name="weigh" if change == "steps" and is_new else "pack")
        async def pack() -> Any:
            return Parcel(5)

        async def work() -> int:
            number: int = (await pack()).number
            await gate.wait()
            return number

        async def work_with_argument(number: int) -> int:
            await gate.wait()
            return number

        async def work_with_other_argument(count: int) -> int:
            return count

        function: Any = work
        if change == "arguments":
            function = work_with_other_argument if is_new else work_with_argument
        self.arguments = (5,) if change == "arguments" else ()
        self.work = durable.workflow(name="work")(function)
        if change != "classes" or not is_new:
            durable.register_type(Parcel)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("steps", NonDeterministicWorkflowError),
        ("classes", DecodeError),
        ("arguments", DecodeError),
    ],
)
async def test_what_this_code_cannot_run_is_left_to_code_that_can(
    url: str, change: str, error: type[Exception]
) -> None:
    gate = Gate()
    old, new = (Version(url, change, gate, is_new=is_new) for is_new in (False, True))
    async with old.durable:
        await old.durable.options(workflow_id="w").start_workflow(old.work, *old.arguments)
        await gate.reached.wait()
    gate.open()

    async with new.durable:
        with pytest.raises(error):
            await result_of(new.durable, "w")
        assert await row_of(url, "w", "state") == ("PENDING",)

        async with Version(url, change, gate, is_new=False).durable as able:
            assert await result_of(able, "w") == 5
        assert await result_of(new.durable, "w") == 5


# Executors that were declared dead and live


async def test_an_executor_that_was_declared_dead_goes_on_as_another(url: str) -> None:
    first, second = Worker(url, waits=True), Worker(url)
    async with first, second:
        old_id = executor_of(first).id
        call = asyncio.ensure_future(first.options(workflow_id="w").run_workflow(first.work))
        await first.is_at_gate("w")
        async with declared_dead(first):
            assert await result_of(second, "w") == [0, 1, 2]
            first.gate.open()
            # Its record comes late, and the other executor's outcome counts.
            assert await call == [0, 1, 2]

        assert first.began == [("w", 0), ("w", 1)]
        await is_another(first, old_id)
        assert await first.work() == [0, 1, 2]
        assert await row_of(url, "w", "state, attempts") == ("SUCCESS", 2)


async def test_who_waits_on_a_dead_executor_is_answered_though_its_step_hangs(url: str) -> None:
    first, second = Worker(url, waits=True), Worker(url)
    async with first, second:
        call = asyncio.ensure_future(first.options(workflow_id="w").run_workflow(first.work))
        await first.is_at_gate("w")
        async with declared_dead(first):
            await result_of(second, "w")

        assert await asyncio.wait_for(call, PATIENCE_SECONDS) == [0, 1, 2]
        assert first.began == [("w", 0), ("w", 1)]


@pytest.mark.parametrize("workflow_id", [None, "w"])
async def test_what_is_started_on_a_dead_executor_is_refused_or_runs(
    url: str, workflow_id: str | None
) -> None:
    async with Worker(url) as first, Worker(url):
        async with declared_dead(first):
            calls = first.options(workflow_id=workflow_id)
            start = asyncio.ensure_future(calls.start_workflow(first.work))
            call = asyncio.ensure_future(first.work())
            await asyncio.wait([start, call], timeout=0.2)

        for work in (start, call):
            try:
                outcome = await work
            except WorkflowInterruptedError:
                continue
            result = outcome if work is call else await outcome.get_result(timeout=PATIENCE_SECONDS)
            assert result == [0, 1, 2]


async def test_the_rows_of_a_late_transaction_are_rolled_back(url: str) -> None:
    def build(name: str, gate: Gate) -> tuple[Durable, Any]:
        durable = Durable(url, drain_timeout=0.0)

        @durable.transaction(name="insert")
        async def insert() -> str:
            gate.reached.set()
            await gate.wait()
            sql = f"INSERT INTO effects VALUES ('{name}')"
            await durable.session.execute(sa.text(sql))
            return name

        @durable.workflow(name="work")
        async def work() -> str:
            await insert()
            return await insert()

        return durable, work

    late, prompt = Gate(), Gate()
    prompt.open()
    (first, work), (second, _) = build("late", late), build("prompt", prompt)
    async with first, second:
        await query(url, "CREATE TABLE effects (name TEXT)")
        call = asyncio.ensure_future(first.options(workflow_id="w").run_workflow(work))
        await late.reached.wait()
        if url.startswith("sqlite"):
            # No other process writes while it is open, so none can declare an executor dead.
            late.open()
            assert await call == "late"
            return
        async with declared_dead(first):
            assert await result_of(second, "w") == "prompt"
            late.open()
            assert await call == "prompt"

    assert await query(url, "SELECT name FROM effects") == [("prompt",)] * 2


async def test_a_parent_with_a_called_child_is_taken_over_as_a_whole(url: str) -> None:
    began: list[tuple[str, str]] = []

    def build(name: str, gate: Gate) -> tuple[Durable, Any]:
        durable = Durable(url, drain_timeout=0.0)

        @durable.step(name="step")
        async def step(what: str) -> str:
            began.append((name, what))
            if what == "child's second":
                await gate.wait()
            return what

        @durable.workflow(name="child")
        async def child() -> str:
            await step("child's first")
            return await step("child's second")

        @durable.workflow(name="parent")
        async def parent() -> list[str]:
            return [await step("parent's"), await child()]

        return durable, parent

    late, prompt = Gate(), Gate()
    prompt.open()
    (first, parent), (second, _) = build("late", late), build("prompt", prompt)
    async with first, second:
        call = asyncio.ensure_future(first.options(workflow_id="p").run_workflow(parent))
        await late.reached.wait()
        async with declared_dead(first):
            assert await result_of(second, "p") == ["parent's", "child's second"]
            late.open()
            assert await call == ["parent's", "child's second"]

    assert began[3:] == [("prompt", "child's second")]


async def test_a_process_that_was_declared_dead_may_take_its_own_workflow_again(url: str) -> None:
    first = Worker(url, waits=True)
    async with first, Durable(url) as ignorant:
        call = asyncio.ensure_future(first.options(workflow_id="w").run_workflow(first.work))
        await first.is_at_gate("w")
        async with declared_dead(first):
            await beats(ignorant, 1)
        first.gate.open()

        assert await call == [0, 1, 2]
        assert first.began.count(("w", 0)) == 1


# Failures during the takeover


@pytest.mark.parametrize("method", ["take_over", "load_runs"])
async def test_a_takeover_that_the_storage_fails_is_made_up_for(url: str, method: str) -> None:
    second = Worker(url)
    async with second:
        async with Worker(url, waits=True) as first:
            await first.begin("w")
            storage: Any = storage_of(second)
            failures: list[str] = []

            async def fail_once(*args: Any, **kwargs: Any) -> Any:
                # The statement is executed, but its result is lost.
                delattr(storage, method)
                await getattr(storage, method)(*args, **kwargs)
                failures.append(method)
                raise StorageUnavailableError

            setattr(storage, method, fail_once)

        await until(lambda: failures)
        assert await result_of(second, "w") == [0, 1, 2]


async def test_a_log_that_cannot_be_read_for_a_moment_parks_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", 0.01)
    async with Worker(url, waits=True) as first:
        await first.begin("w")
    second = Worker(url)
    # Started without recovery, so the call takes the workflow over.
    await second.engine.start()
    try:
        storage: Any = storage_of(second)

        async def fail_once(workflow_ids: list[str]) -> None:
            del storage.load_runs
            raise StorageUnavailableError

        storage.load_runs = fail_once
        with pytest.raises((StorageUnavailableError, WorkflowInterruptedError)):
            await second.options(workflow_id="w").run_workflow(second.work)

        assert await result_of(second, "w") == [0, 1, 2]
    finally:
        await second.engine.stop()


async def test_a_stop_during_a_takeover_leaves_all_to_others(url: str) -> None:
    async with Worker(url, waits=True) as first:
        await first.begin("w1", "w2")
    second, reached = Worker(url), asyncio.Event()
    async with second:
        storage: Any = storage_of(second)

        async def take_and_wait(*args: Any, **kwargs: Any) -> Any:
            await type(storage).take_over(storage, *args, **kwargs)
            reached.set()
            await asyncio.Event().wait()

        storage.take_over = take_and_wait
        executor_of(second).beat_soon()
        await reached.wait()

    async with Worker(url) as third:
        assert await result_of(third, "w1") == await result_of(third, "w2") == [0, 1, 2]


# Workflows that kill their process


async def crash_with(url: str, *workflow_ids: str, **options: Any) -> None:
    """Let an executor run these workflows, and die before any of them makes progress."""
    worker = Worker(url, waits=True, **options)
    async with worker:
        await worker.is_at_gate(*workflow_ids)
        await kill(worker)


async def begin_and_crash(url: str, *workflow_ids: str, **options: Any) -> None:
    """Let an executor start these workflows, and die before any of them makes progress."""
    worker = Worker(url, waits=True, **options)
    async with worker:
        await worker.begin(*workflow_ids)
        await kill(worker)


async def test_what_kills_its_processes_again_and_again_is_set_aside(url: str) -> None:
    await begin_and_crash(url, "w")
    for _ in range(2):
        await crash_with(url, "w")

    async with Worker(url, max_recovery_attempts=1) as last:
        handle = await last.retrieve_workflow("w")
        with pytest.raises(RecoveryAttemptsExceededError, match="3 processes"):
            await handle.get_result(timeout=PATIENCE_SECONDS)
        status = await handle.get_status()

        assert status.status == "RETRIES_EXCEEDED"
        assert isinstance(status.error, RecoveryAttemptsExceededError)
        # It is final: another call raises the same error.
        with pytest.raises(RecoveryAttemptsExceededError):
            await last.options(workflow_id="w").run_workflow(last.work)
    assert last.began == []


async def test_a_workflow_without_a_limit_is_never_set_aside(url: str) -> None:
    await begin_and_crash(url, "w")
    for _ in range(3):
        await crash_with(url, "w")

    async with Worker(url, max_recovery_attempts=None) as last:
        assert await result_of(last, "w") == [0, 1, 2]


async def test_progress_between_crashes_is_no_crash_in_a_row(url: str) -> None:
    def build(waits_at: int | None) -> tuple[Durable, Any, asyncio.Event]:
        durable = Durable(url, drain_timeout=0.0)
        reached = asyncio.Event()

        @durable.step(name="step")
        async def step(number: int) -> int:
            if number == waits_at:
                reached.set()
                await asyncio.Event().wait()
            return number

        @durable.workflow(name="work", max_recovery_attempts=1)
        async def work() -> list[int]:
            return [await step(number) for number in range(4)]

        return durable, work, reached

    for waits_at in range(4):
        durable, work, reached = build(waits_at)
        async with durable:
            if waits_at == 0:
                await durable.options(workflow_id="w").start_workflow(work)
            await reached.wait()
            await kill(durable)

    async with build(None)[0] as last:
        assert await result_of(last, "w") == [0, 1, 2, 3]
        assert await row_of(url, "w", "attempts, crashes") == (5, 1)


async def test_suspects_run_one_at_a_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "SUSPECT_SECONDS", LONG_SECONDS)
    await begin_and_crash(url, "a", "b", "c")
    await crash_with(url, "a", "b", "c")

    worker = Worker(url, waits=True)
    async with worker:
        await worker.begin("neighbour")
        await worker.is_at_gate("a")
        await beats(worker, 2)
        assert {workflow_id for workflow_id, _ in worker.began} == {"neighbour", "a"}

        worker.gate.open()
        for workflow_id in ("a", "b", "c", "neighbour"):
            assert await result_of(worker, workflow_id) == [0, 1, 2]


async def test_the_neighbours_of_a_workflow_that_kills_its_process_are_not_blamed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "SUSPECT_SECONDS", LONG_SECONDS)
    neighbours = ("a", "y", "z")
    await begin_and_crash(url, *neighbours, "poison", max_recovery_attempts=1)
    await crash_with(url, *neighbours, "poison", max_recovery_attempts=1)

    # "a" is a suspect and comes first: alone it makes progress. Then the poison kills again.
    worker = Worker(url, waits=True, max_recovery_attempts=1)
    async with worker:
        await worker.is_at_gate("a")
        # Closed before "a" continues: the next one may begin as soon as "a" is done.
        gate, worker.gate = worker.gate, Gate()
        gate.open()
        await result_of(worker, "a")
        await worker.is_at_gate("poison")
        await kill(worker)

    async with Worker(url, max_recovery_attempts=1) as last:
        with pytest.raises(RecoveryAttemptsExceededError):
            await result_of(last, "poison")
        for neighbour in neighbours:
            assert await result_of(last, neighbour) == [0, 1, 2]


async def test_a_slow_suspect_is_not_blamed_for_the_one_after_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "SUSPECT_SECONDS", 0.01)
    await begin_and_crash(url, "poison", "a slow one", max_recovery_attempts=1)
    for _ in range(2):
        await crash_with(url, "poison", "a slow one", max_recovery_attempts=1)

    async with Worker(url, max_recovery_attempts=1) as last:
        assert await result_of(last, "a slow one") == [0, 1, 2]


# Many


async def test_two_executors_share_a_thousand_orphans(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "PAGE_PAUSE_SECONDS", 0.5)
    ids = [f"w{number:04}" for number in range(1000)]
    first = Worker(url, waits=True)
    async with first:
        starts = (first.options(workflow_id=i).start_workflow(first.work) for i in ids)
        await asyncio.gather(*starts)
        await first.is_at_gate(*ids)

    workers = [Worker(url, waits=True) for _ in range(2)]
    async with workers[0], workers[1]:
        await until(lambda: all(worker.began for worker in workers))
        for worker in workers:
            worker.gate.open()
        results = await asyncio.gather(*(result_of(workers[0], i) for i in ids))

    assert results == [[0, 1, 2]] * 1000
    ran = Counter(step for worker in workers for step in worker.began)
    assert ran == Counter({(i, number): 1 for i in ids for number in (1, 2)})
    counted = await query(url, "SELECT DISTINCT attempts FROM asgi_durable_workflows")
    assert counted == [(2,)]


async def test_parents_and_children_among_many_orphans_all_finish(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "PAGE_SIZE", 20)
    monkeypatch.setattr(takeover, "PAGE_PAUSE_SECONDS", 0.05)
    began: Counter[str | None] = Counter()

    def build(gate: Gate) -> tuple[Durable, Any]:
        durable = Durable(url, drain_timeout=0.0)

        @durable.step(name="step")
        async def step() -> str | None:
            began[durable.workflow_id] += 1
            await gate.wait()
            return durable.workflow_id

        @durable.workflow(name="child")
        async def child() -> str | None:
            return await step()

        @durable.workflow(name="parent")
        async def parent() -> list[str | None]:
            return [await child(), await child()]

        return durable, parent

    ids = [f"p{number:03}" for number in range(100)]
    first, parent = build(Gate())
    async with first:
        await asyncio.gather(*(first.options(workflow_id=i).start_workflow(parent) for i in ids))
        await until(lambda: len(began) == 100)
    opened = Gate()
    opened.open()

    async with build(opened)[0] as one, build(opened)[0]:
        results = await asyncio.gather(*(result_of(one, i) for i in ids))

    assert results == [[f"{i}~0", f"{i}~1"] for i in ids]
    assert began == Counter({f"{i}~{n}": 2 - n for i in ids for n in (0, 1)})
