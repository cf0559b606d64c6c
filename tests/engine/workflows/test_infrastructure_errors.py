"""A failing database is never an outcome: workflows continue later, in the same process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from asgi_durable import Durable, StorageUnavailableError, WorkflowNotFoundError
from asgi_durable.engine.recovery import own_workflows as recovery

pytestmark = pytest.mark.anyio


@pytest.fixture
async def durable(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Durable]:
    """An instance with very short timeouts for retries and for recovery."""
    monkeypatch.setattr(recovery, "FIRST_DELAY_SECONDS", 0.01)
    async with Durable(
        f"{url}?busy_timeout=0.01", drain_timeout=0.0, storage_patience=0.05
    ) as durable:
        yield durable


@pytest.fixture
def locked(tmp_path: Path):
    @contextmanager
    def lock() -> Iterator[None]:
        """Hold the database's write lock, as another program would."""
        connection = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.close()

    return lock


async def test_a_workflow_that_cannot_be_started_is_a_503(durable: Durable, locked) -> None:
    @durable.step
    async def step() -> None: ...

    @durable.workflow
    async def work() -> None:
        await step()

    with locked(), pytest.raises(StorageUnavailableError) as caught:
        await work()
    assert caught.value.status_code == 503
    with locked(), pytest.raises(StorageUnavailableError):
        await durable.start_workflow(work)
    with locked(), pytest.raises(StorageUnavailableError):
        await durable.options(workflow_id="w").run_workflow(work)

    assert await durable.options(workflow_id="w").run_workflow(work) is None


async def test_a_step_whose_record_is_lost_runs_again_in_the_same_process(
    durable: Durable, locked
) -> None:
    runs: list[str] = []

    @durable.step
    async def step(name: str) -> str:
        runs.append(name)
        return name

    @durable.step
    async def failing() -> None:
        runs.append("failing")

    @durable.workflow
    async def work() -> str:
        await step("first")
        await step("second")
        lock.__enter__()
        try:
            # The wait for the second step's record finds that it cannot be committed.
            await failing()
        except Exception:
            runs.append("swallowed")
        return "done"

    lock = locked()
    with pytest.raises(StorageUnavailableError):
        await durable.options(workflow_id="w").run_workflow(work)
    assert "failing" not in runs
    assert "swallowed" not in runs
    lock.__exit__(None, None, None)

    # The workflow re-enters the generator that locks, which has ended: nothing locks again.
    lock = contextmanager(lambda: iter([None]))()
    handle = await durable.retrieve_workflow("w")
    assert await handle.get_result(timeout=60) == "done"
    assert runs.count("first") == 1
    assert runs.count("second") == 2
    assert runs.count("failing") == 1


async def test_a_locked_database_is_waited_for_within_the_patience(url: str, locked) -> None:
    released = asyncio.Event()

    async with Durable(f"{url}?busy_timeout=0.01", storage_patience=60.0) as durable:

        @durable.workflow
        async def work() -> str:
            return "done"

        with locked():
            task = asyncio.ensure_future(work())
            # Two polls of the event loop's clock later the first attempt has failed.
            asyncio.get_running_loop().call_later(0.2, released.set)
            await released.wait()
            assert not task.done()
        assert await task == "done"


async def test_a_transaction_meets_a_locked_database(durable: Durable, locked) -> None:
    runs = []

    @durable.step
    async def step() -> None: ...

    @durable.transaction
    async def insert() -> str:
        runs.append(1)
        await durable.session.execute(sa.text("CREATE TABLE once (id INTEGER)"))
        return "inserted"

    @durable.workflow
    async def work() -> str:
        lock.__enter__()
        return await insert()

    lock = locked()
    started = asyncio.ensure_future(durable.options(workflow_id="w").run_workflow(work))
    with pytest.raises(StorageUnavailableError):
        await started
    assert runs == []
    lock.__exit__(None, None, None)
    lock = contextmanager(lambda: iter([None]))()

    assert await (await durable.retrieve_workflow("w")).get_result(timeout=60) == "inserted"


async def test_a_full_database_is_a_503_and_the_work_goes_on_when_there_is_room(
    durable: Durable,
) -> None:
    writer = durable.engine._running.services.storage._opened.writer  # type: ignore[union-attr]
    pages = writer.connection.execute("PRAGMA page_count").fetchone()[0]
    runs: list[int] = []

    @durable.step
    async def step(number: int) -> str:
        runs.append(number)
        return "x" * 50_000

    @durable.workflow
    async def work() -> int:
        return len(await step(0) + await step(1))

    writer.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageUnavailableError) as caught:
        await durable.options(workflow_id="w").run_workflow(work)
    assert "test.db" in str(caught.value)
    assert runs == [0]
    writer.connection.execute("PRAGMA max_page_count = 1000000")

    assert await durable.options(workflow_id="w").run_workflow(work) == 100_000
    assert runs.count(1) == 1


@pytest.mark.parametrize("turns", [0, 20], ids=["called after", "queued behind"])
async def test_a_child_of_a_workflow_that_never_began_does_not_run(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    storage = durable.engine._running.services.storage  # type: ignore[union-attr]
    commit, batches, under_way = storage.commit, [], asyncio.Event()
    ids: list[str | None] = []
    runs: list[str] = []

    async def fail_the_first_batch(batch):
        batches.append(batch)
        under_way.set()
        if batch[0] is batches[0][0]:
            for _ in range(turns):
                await asyncio.sleep(0)
            raise StorageUnavailableError("locked")
        return await commit(batch)

    @durable.step
    async def step() -> None:
        runs.append("step")

    @durable.workflow
    async def child() -> None:
        await step()

    @durable.workflow
    async def parent() -> None:
        ids.append(durable.workflow_id)
        # Its own start is being committed when the child's is submitted.
        await under_way.wait()
        await child()

    monkeypatch.setattr(storage, "commit", fail_the_first_batch)
    with pytest.raises(StorageUnavailableError):
        await parent()
    monkeypatch.undo()

    for workflow_id in (ids[0], f"{ids[0]}~0"):
        with pytest.raises(WorkflowNotFoundError):
            await durable.retrieve_workflow(str(workflow_id))
    assert runs == []


async def test_a_failing_database_in_a_group_is_no_outcome(durable: Durable, locked) -> None:
    is_locked = True

    @durable.transaction
    async def select() -> None:
        await durable.session.execute(sa.text("SELECT 1"))

    @durable.step(retry=None)
    async def step() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(select())
        return "selected"

    @durable.workflow
    async def work() -> str:
        if is_locked:
            lock.__enter__()
        return await step()

    lock = locked()
    with pytest.raises(StorageUnavailableError):
        await durable.options(workflow_id="w").run_workflow(work)
    is_locked = False
    lock.__exit__(None, None, None)

    assert await durable.options(workflow_id="w").run_workflow(work) == "selected"


async def test_a_database_that_takes_no_writes_repeats_no_side_effects(
    durable: Durable, locked
) -> None:
    runs: list[str] = []

    @durable.step
    async def charge() -> str:
        runs.append("charge")
        if len(runs) == 1:
            lock.__enter__()
        return "charged"

    @durable.workflow
    async def work() -> str:
        return await charge()

    lock = locked()
    with pytest.raises(StorageUnavailableError):
        await durable.options(workflow_id="w").run_workflow(work)
    for _ in range(3):
        with pytest.raises(StorageUnavailableError):
            await durable.options(workflow_id="w").run_workflow(work)
    assert runs == ["charge"]
    lock.__exit__(None, None, None)

    assert await (await durable.retrieve_workflow("w")).get_result(timeout=60) == "charged"
    assert runs == ["charge"] * 2


async def test_a_payload_that_the_database_cannot_hold_fails_alone(durable: Durable) -> None:
    @durable.workflow
    async def work(value: str) -> str:
        return value

    # A lone surrogate is legal in JSON but not in a database's text.
    calls = [durable.options(workflow_id=f"w{n}").run_workflow(work, "x") for n in range(5)]
    bad = durable.options(workflow_id="bad").run_workflow(work, "\ud800")

    assert await asyncio.gather(*calls, bad) == ["x"] * 5 + ["\ud800"]
