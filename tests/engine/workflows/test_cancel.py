"""Cancelling workflows, in their own process and in others."""

from __future__ import annotations

import asyncio
import contextlib

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
    note_calls,
    query,
    row_of,
    storage_of,
    until,
)
from support.interruption import Gate
from support.threads import ThreadGate, in_thread

from asgi_durable import (
    Durable,
    DurableUsageError,
    StorageUnavailableError,
    WorkflowCancelledError,
    WorkflowNotFoundError,
    WorkflowState,
)
from asgi_durable.engine.runs import active_runs
from asgi_durable.engine.workflows import cancellation
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.storage.writes import CancelWorkflow, StartWorkflow

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def is_cancelled(durable: Durable, workflow_id: str = "w") -> None:
    """Check that waiting for a workflow raises the error of a cancelled one."""
    handle = await durable.retrieve_workflow(workflow_id)
    with pytest.raises(WorkflowCancelledError, match=f"'{workflow_id}' was cancelled") as raised:
        await handle.get_result(timeout=PATIENCE_SECONDS)
    assert (raised.value.code, raised.value.status_code) == ("WORKFLOW_CANCELLED", 410)
    assert raised.value.workflow_id == workflow_id
    status = await handle.get_status()
    assert status.status is WorkflowState.CANCELLED
    assert isinstance(status.error, WorkflowCancelledError)


async def no_run(durable: Durable, workflow_id: str = "w") -> None:
    """Wait until a process does not run a workflow any more."""
    running = durable.engine.running()
    await until(lambda: running.active.find(workflow_id) is None)


# In one process


async def test_the_code_is_cancelled_where_it_waits_and_nothing_more_runs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At once, and not with the next heartbeat.
    monkeypatch.setattr(cancellation, "QUERY_INTERVAL_SECONDS", 600.0)
    durable, gate = Durable(url, drain_timeout=0.0), Gate()
    seen: list[str] = []

    @durable.step
    async def step(name: str) -> None:
        seen.append(name)

    @durable.workflow
    async def work() -> None:
        await step("first")
        try:
            await gate.wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            with contextlib.suppress(Exception):
                await step("clean up")
            raise

    async with durable:
        handle = await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
        waiting = asyncio.ensure_future(handle.get_result())

        assert await handle.cancel() is True
        with pytest.raises(WorkflowCancelledError):
            await waiting
        await is_cancelled(durable)
        assert await handle.cancel() is True
    assert seen == ["first", "cancelled"]


async def test_whoever_called_it_gets_the_error(url: str) -> None:
    async with Worker(url, waits=True) as worker:
        calls = [
            asyncio.ensure_future(worker.options(workflow_id="w").run_workflow(worker.work))
            for _ in range(3)
        ]
        await worker.is_at_gate("w")
        assert await worker.cancel_workflow("w") is True

        for call in calls:
            with pytest.raises(WorkflowCancelledError):
                await call
        with pytest.raises(WorkflowCancelledError):
            await worker.options(workflow_id="w").run_workflow(worker.work)
    assert worker.began == [("w", 0), ("w", 1)]


async def test_a_finished_workflow_keeps_its_outcome(url: str) -> None:
    async with Worker(url) as worker:
        handle = await worker.options(workflow_id="w").start_workflow(worker.work)
        assert await handle.get_result() == [0, 1, 2]

        assert await handle.cancel() is False
        assert await handle.get_result() == [0, 1, 2]


@pytest.mark.parametrize("workflow_id", ["unknown", "\ud800"])
async def test_an_unknown_workflow_is_not_found(url: str, workflow_id: str) -> None:
    async with Worker(url) as worker:
        with pytest.raises(WorkflowNotFoundError):
            await worker.cancel_workflow(workflow_id)


async def test_a_code_that_catches_everything_can_do_nothing_any_more(url: str) -> None:
    durable, gate = Durable(url, drain_timeout=0.0), Gate()
    ran: list[str] = []

    @durable.step
    async def step() -> None:
        ran.append("step")

    @durable.transaction
    async def save() -> None:
        ran.append("transaction")

    @durable.workflow
    async def child() -> None:
        ran.append("child")

    @durable.workflow
    async def work() -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            for call in (step, save, child):
                with contextlib.suppress(BaseException):
                    await call()
        ran.append("end")
        return "a result all the same"

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
        await durable.cancel_workflow("w")
        await until(lambda: ran)
        await no_run(durable)

        await is_cancelled(durable)
        assert await query(url, "SELECT 1 FROM asgi_durable_steps") == []
    assert ran == ["end"]


async def test_nobody_waits_for_a_code_that_does_not_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_runs, "CANCEL_TIMEOUT_SECONDS", 0.05)
    durable, gate, over = Durable(url, drain_timeout=0.0), Gate(), Gate()
    ran: list[str] = []

    @durable.step
    async def step() -> None:
        ran.append("step")

    @durable.workflow
    async def child() -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await over.wait()
            await step()

    @durable.workflow
    async def parent() -> str:
        try:
            await durable.options(workflow_id="child").run_workflow(child)
        except WorkflowCancelledError as error:
            return error.workflow_id
        return ""

    async with durable:
        handle = await durable.options(workflow_id="w").start_workflow(parent)
        await gate.reached.wait()
        assert await durable.cancel_workflow("child") is True

        assert await handle.get_result(timeout=PATIENCE_SECONDS) == "child"
        over.open()
        for _ in range(10):
            await asyncio.sleep(0)
    assert ran == []


async def test_its_cleaning_up_is_not_cancelled_as_well(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "QUERY_INTERVAL_SECONDS", 0.0)
    durable, gate, cleaning = Durable(url, drain_timeout=0.0), Gate(), Gate()
    cleaned: list[str] = []

    @durable.workflow
    async def work() -> None:
        try:
            await gate.wait()
        finally:
            await cleaning.wait()
            cleaned.append("all")

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
        looks = note_calls(durable, "list_cancelled")
        assert [await durable.cancel_workflow("w") for _ in range(3)] == [True] * 3
        await until(lambda: len(looks) >= 3)
        cleaning.open()
        await until(lambda: cleaned)
    assert cleaned == ["all"]


async def test_a_workflow_may_cancel_itself(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    seen: list[str] = []

    @durable.workflow
    async def work() -> None:
        await durable.cancel_workflow("w")
        seen.append("went on")

    async with durable:
        with pytest.raises(WorkflowCancelledError):
            await durable.options(workflow_id="w").run_workflow(work)
    assert seen == []


async def test_a_workflow_that_cancels_another_replays_what_it_was_told(url: str) -> None:
    worker, gate = Worker(url, waits=True), Gate()
    told: list[object] = []

    @worker.workflow
    async def boss() -> list[object]:
        answers: list[object] = [await worker.cancel_workflow("w")]
        try:
            await worker.cancel_workflow("unknown")
        except WorkflowNotFoundError as error:
            answers.append(error.code)
        told.append(answers)
        await gate.wait()
        return answers

    async with worker:
        await worker.begin("w")
        await worker.options(workflow_id="boss").start_workflow(boss)
        await until(lambda: told)
    async with worker:
        gate.open()
        handle = await worker.retrieve_workflow("boss")
        assert await handle.get_result(timeout=PATIENCE_SECONDS) == [True, "WORKFLOW_NOT_FOUND"]
    assert told == [[True, "WORKFLOW_NOT_FOUND"]] * 2


async def test_a_transaction_cannot_cancel_while_it_holds_the_database(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)

    @durable.transaction
    async def save() -> None:
        await durable.cancel_workflow("w")

    async with durable:
        with pytest.raises(DurableUsageError, match="holds the database"):
            await save()


async def test_a_transaction_in_its_body_commits_nothing(url: str) -> None:
    durable, gate = Durable(url, drain_timeout=0.0), Gate()
    await durable.migrate()
    await query_table(url)

    @durable.transaction
    async def save() -> None:
        await durable.session.execute(sa.text("SELECT 1"))
        await gate.wait()
        await durable.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))

    @durable.workflow
    async def work() -> None:
        with contextlib.suppress(BaseException):
            await save()

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
        if url.startswith("sqlite"):
            # It holds the file: the cancellation waits for its end, and its commit is first.
            cancelling = asyncio.ensure_future(durable.cancel_workflow("w"))
            done, _ = await asyncio.wait([cancelling], timeout=0.2)
            assert not done
            gate.open()
            assert await cancelling is (await row_of(url, "w", "state") == ("CANCELLED",))
        else:
            assert await durable.cancel_workflow("w") is True
            await no_run(durable)
            assert await query(url, "SELECT name FROM effects") == []


async def query_table(url: str) -> None:
    async with Durable(url) as durable:

        @durable.transaction
        async def create() -> None:
            await durable.session.execute(sa.text("CREATE TABLE effects (name TEXT)"))

        await create()


# Children


class Family(Durable):
    """A workflow that calls a child and has started another one; both wait at their gates."""

    def __init__(self, url: str) -> None:
        super().__init__(url, drain_timeout=0.0)
        self.called, self.started = Gate(), Gate()
        self.caught: list[str] = []

        @self.step(name="wait")
        async def wait(which: str) -> str:
            await getattr(self, which).wait()
            return which

        @self.workflow(name="child")
        async def child(which: str) -> str:
            return await wait(which)

        @self.workflow(name="parent")
        async def parent() -> str:
            await self.options(workflow_id="started").start_workflow(child, "started")
            try:
                return await self.options(workflow_id="called").run_workflow(child, "called")
            except WorkflowCancelledError as error:
                self.caught.append(error.workflow_id)
                return f"without {error.workflow_id}"

        self.parent = parent

    async def begin(self) -> None:
        await self.options(workflow_id="w").start_workflow(self.parent)
        await self.called.reached.wait()
        await self.started.reached.wait()


async def test_what_it_called_is_cancelled_with_it_and_what_it_started_goes_on(url: str) -> None:
    family = Family(url)
    async with family:
        await family.begin()
        assert await family.cancel_workflow("w") is True

        await is_cancelled(family, "w")
        await is_cancelled(family, "called")
        family.started.open()
        started = await family.retrieve_workflow("started")
        assert await started.get_result(timeout=PATIENCE_SECONDS) == "started"
    assert family.caught == []


async def test_a_caller_sees_that_its_child_was_cancelled_and_so_does_a_replay(url: str) -> None:
    family, gate = Family(url), Gate()

    @family.step
    async def after() -> None:
        await gate.wait()

    parent = family.parent

    @family.workflow
    async def grandparent() -> str:
        result = await family.options(workflow_id="w").run_workflow(parent)
        await after()
        return result

    async with family:
        await family.options(workflow_id="top").start_workflow(grandparent)
        await family.called.reached.wait()
        assert await family.cancel_workflow("called") is True
        await gate.reached.wait()
    assert family.caught == ["called"]
    family.started.open()
    gate.open()
    async with family:
        handle = await family.retrieve_workflow("top")
        assert await handle.get_result(timeout=PATIENCE_SECONDS) == "without called"


async def test_a_caller_that_does_not_catch_it_fails_with_it(url: str) -> None:
    worker = Worker(url, waits=True)
    caught: list[str] = []

    @worker.workflow
    async def parent(again: bool = False) -> None:
        await worker.options(workflow_id="w").run_workflow(worker.work)

    async with worker:
        calling = asyncio.ensure_future(worker.options(workflow_id="p").run_workflow(parent))
        await worker.is_at_gate("w")
        await worker.cancel_workflow("w")
        for call in (calling, worker.options(workflow_id="p").run_workflow(parent)):
            with pytest.raises(WorkflowCancelledError) as raised:
                await call
            caught.append(raised.value.workflow_id)
        assert await row_of(url, "p", "state") == ("ERROR",)
    assert caught == ["w", "w"]


async def test_a_child_that_begins_at_that_moment_ends_with_its_caller(url: str) -> None:
    worker = Worker(url, waits=True)

    @worker.workflow
    async def parent() -> None:
        await worker.work()

    async with worker:
        await worker.options(workflow_id="w").start_workflow(parent)
        await until(lambda: worker.began)
        # As if the cancellation had come an instant before the child's start.
        await query_update(url, "state = 'CANCELLED'", "w")
        await until(lambda: row_is(url, "w~0", "CANCELLED"))
        await is_cancelled(worker, "w~0")


async def test_what_a_cancelled_workflow_called_is_resumed_by_nobody(url: str) -> None:
    first, second = Worker(url, waits=True), Worker(url)

    for worker in (first, second):

        @worker.workflow(name="parent")
        async def parent(worker: Worker = worker) -> None:
            raise AssertionError

    async with second:
        async with first:
            await first.begin("child")
            await query_update(url, "parent_id = 'w', parent_step = 0, awaited = true", "child")
            await storage_of(first).commit(
                [StartWorkflow(record_of(executor_of(first).id)), cancel_of(executor_of(first).id)]
            )
            # As if it had begun a moment after that.
            await query_update(url, "state = 'PENDING'", "child")
            await kill(first)
        await until(lambda: row_is(url, "child", "CANCELLED"))
    assert second.began == []


def record_of(executor_id: str) -> WorkflowRecord:
    return WorkflowRecord(
        workflow_id="w",
        name="parent",
        state=WorkflowState.PENDING,
        executor_id=executor_id,
        attempts=1,
        parent_id=None,
        parent_step=None,
        awaited=True,
        request_id=None,
        fingerprint=None,
        input=b"{}",
        output=None,
        error=None,
        created_at_us=1,
        updated_at_us=1,
    )


def cancel_of(executor_id: str) -> CancelWorkflow:
    return CancelWorkflow(workflow_id="w", executor_id=executor_id, cancelled_at_us=2)


async def query_update(url: str, change: str, workflow_id: str) -> None:
    async with Durable(url) as durable:

        @durable.transaction
        async def update() -> None:
            sql = f"UPDATE asgi_durable_workflows SET {change} WHERE workflow_id = '{workflow_id}'"
            await durable.session.execute(sa.text(sql))

        await update()


async def row_is(url: str, workflow_id: str, state: str) -> bool:
    return await row_of(url, workflow_id, "state") == (state,)


# In several processes


async def test_what_runs_elsewhere_is_stopped_there(url: str) -> None:
    async with Worker(url, waits=True) as first, Worker(url) as second:
        await first.begin("w")
        waiting = asyncio.ensure_future(is_cancelled(first))

        assert await second.cancel_workflow("w") is True

        await is_cancelled(second)
        await waiting
        await no_run(first)
    assert (first.began, second.began) == ([("w", 0), ("w", 1)], [])


@pytest.mark.needs_sessions("a message to another executor")
async def test_another_process_is_told_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "QUERY_INTERVAL_SECONDS", 600.0)
    async with Worker(postgres_url, waits=True) as first, Worker(postgres_url) as second:
        await first.begin("w")
        await second.cancel_workflow("w")

        await no_run(first)


async def test_a_process_that_is_not_told_looks_by_itself(url: str) -> None:
    async with Worker(url, waits=True) as first, Worker(url) as second:
        await first.begin("w")
        executor_of(second).send = lambda *_: None  # type: ignore[method-assign]
        await second.cancel_workflow("w")

        await no_run(first)


async def test_a_process_that_was_not_told_can_record_nothing_more(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "QUERY_INTERVAL_SECONDS", 600.0)
    async with Worker(url, waits=True) as first, Worker(url) as second:
        executor_of(second).send = lambda *_: None  # type: ignore[method-assign]
        await first.begin("w")
        await second.cancel_workflow("w")
        first.gate.open()

        await is_cancelled(first)
        assert len(await query(url, "SELECT 1 FROM asgi_durable_steps")) == 1
    assert first.began == [("w", 0), ("w", 1)]


async def test_a_process_does_not_look_at_what_is_over_soon(url: str) -> None:
    async with Worker(url) as worker:
        looks = note_calls(worker, "list_cancelled")
        for number in range(5):
            await worker.options(workflow_id=f"w{number}").run_workflow(worker.work)
        await beats(worker, 3)

        assert looks == []


async def test_what_nobody_runs_can_be_cancelled(url: str) -> None:
    async with Worker(url, waits=True) as first:
        await first.begin("w")
        await kill(first)
    async with Durable(url) as other:
        assert await other.cancel_workflow("w") is True
    async with Worker(url) as second:
        await beats(second, 3)
        await is_cancelled(second)
    assert second.began == []


async def test_a_process_that_was_declared_dead_cancels_as_another_executor(url: str) -> None:
    async with Worker(url, waits=True) as first, Worker(url) as second:
        await first.begin("w")
        old_id = executor_of(second).id
        async with declared_dead(second):
            cancelling = asyncio.ensure_future(second.cancel_workflow("w"))
            await asyncio.sleep(0)
        await is_another(second, old_id)

        assert await cancelling is True
        await is_cancelled(first)


async def test_an_outage_is_told_and_nothing_is_cancelled(url: str) -> None:
    async with Worker(url, waits=True, storage_patience=0.0) as worker:
        await worker.begin("w")
        commit = storage_of(worker).commit

        async def fail(_batch: object) -> None:
            raise StorageUnavailableError("gone")

        storage_of(worker).commit = fail  # type: ignore[method-assign, assignment]
        with pytest.raises(StorageUnavailableError):
            await worker.cancel_workflow("w")
        storage_of(worker).commit = commit  # type: ignore[method-assign]

        worker.gate.open()
        handle = await worker.retrieve_workflow("w")
        assert await handle.get_result(timeout=PATIENCE_SECONDS) == [0, 1, 2]


# Blocking functions


async def test_a_thread_ends_at_its_next_step(url: str) -> None:
    durable, gate = Durable(url, drain_timeout=0.0), ThreadGate()
    seen: list[str] = []

    @durable.step
    def step(name: str) -> None:
        seen.append(name)
        if name == "first":
            gate.wait()

    @durable.workflow
    def work() -> None:
        try:
            step("first")
            step("second")
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    def run() -> str:
        with pytest.raises(WorkflowCancelledError):
            durable.blocking.options(workflow_id="w").run_workflow(work)
        return "cancelled"

    async with durable:
        calling = asyncio.ensure_future(in_thread(run))
        await gate.is_reached()
        handle = await in_thread(durable.blocking.retrieve_workflow, "w")
        assert await in_thread(handle.cancel) is True
        gate.opened.set()

        assert await calling == "cancelled"
        await is_cancelled(durable)
        assert await in_thread(durable.blocking.cancel_workflow, "w") is True
    assert seen == ["first", "RunStopped"]


async def test_the_blocking_verb_does_not_block_an_event_loop(url: str) -> None:
    async with Durable(url) as durable:
        with pytest.raises(DurableUsageError, match="cancel_workflow"):
            durable.blocking.cancel_workflow("w")
