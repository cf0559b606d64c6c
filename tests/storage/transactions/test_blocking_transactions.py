"""The contract of ``blocking_transaction``: that of ``transaction``, in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from support.databases.storages import Adapter, kinds
from support.records import EXECUTOR, OTHER, record, step, success, workflow

from asgi_durable import DurableUsageError, StorageUnavailableError
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import SlotTakenError, StepSlot
from asgi_durable.storage.writes import OutcomeKind, ReleaseWorkflow, StartWorkflow, Write

pytestmark = pytest.mark.anyio

SLOT = StepSlot(workflow_id="w", step_number=0, executor_id=EXECUTOR)
INSERT = sa.text("INSERT INTO effects VALUES ('x')")


@pytest.fixture(autouse=True)
async def _started(new_storage: Adapter, storage: Storage) -> None:
    if urlsplit(new_storage.url).scheme == "postgresql":
        pytest.importorskip("psycopg")
    await storage.commit([StartWorkflow(workflow())])
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (name TEXT)"))


def insert(storage: Storage, slot: StepSlot | None = SLOT) -> None:
    with storage.blocking_transaction(slot) as transaction:
        transaction.session.execute(INSERT)
        if slot is not None:
            transaction.record(step(slot.workflow_id, slot.step_number))


async def effects(storage: Storage) -> int:
    async with storage.transaction(None) as transaction:
        result = await transaction.session.execute(sa.text("SELECT count(*) FROM effects"))
        return result.scalar_one()


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


async def test_rows_and_record_are_committed_together(storage: Storage, other: Storage) -> None:
    await in_thread(insert, storage)

    (run,) = await other.load_runs(["w"])
    assert run.steps == (step(),)
    assert await effects(other) == 1


async def test_the_session_is_one_of_a_thread(storage: Storage) -> None:
    def session() -> object:
        with storage.blocking_transaction(None) as transaction:
            return transaction.session

    assert isinstance(await in_thread(session), Session)


async def test_an_exception_rolls_both_back(storage: Storage) -> None:
    def fail() -> None:
        with storage.blocking_transaction(SLOT) as transaction:
            transaction.session.execute(INSERT)
            transaction.record(step())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await in_thread(fail)

    (run,) = await storage.load_runs(["w"])
    assert run.steps == ()
    assert await effects(storage) == 0


async def test_a_mistake_in_sql_is_the_applications_own(storage: Storage) -> None:
    def fail() -> None:
        with storage.blocking_transaction(SLOT) as transaction:
            transaction.session.execute(sa.text("INSERT INTO missing VALUES ('x')"))

    with pytest.raises(sa.exc.DBAPIError):
        await in_thread(fail)

    await in_thread(insert, storage)


async def test_what_the_session_holds_is_written_before_the_record(storage: Storage) -> None:
    def work() -> None:
        with storage.blocking_transaction(SLOT) as transaction:
            transaction.session.execute(INSERT)
            transaction.session.commit()
            transaction.session.execute(INSERT)
            transaction.record(step())

    await in_thread(work)

    assert await effects(storage) == 2


async def test_a_commit_of_the_session_ends_nothing(storage: Storage) -> None:
    def fail() -> None:
        with storage.blocking_transaction(SLOT) as transaction:
            transaction.session.execute(INSERT)
            transaction.session.commit()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await in_thread(fail)

    assert await effects(storage) == 0


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "of its connection"])
async def test_a_transaction_that_was_ended_behind_the_session_is_refused(
    storage: Storage, end: str
) -> None:
    def work() -> None:
        with storage.blocking_transaction(SLOT) as transaction:
            transaction.session.execute(INSERT)
            connection = transaction.session.connection()
            if end == "of its connection":
                connection.commit()
            else:
                connection.exec_driver_sql(end)
            transaction.record(step())

    with pytest.raises((DurableUsageError, sa.exc.SQLAlchemyError)):
        await in_thread(work)

    (run,) = await storage.load_runs(["w"])
    assert run.steps == ()


async def test_a_place_that_is_recorded_is_taken(storage: Storage) -> None:
    await storage.commit([record(step())])

    def work() -> None:
        with storage.blocking_transaction(SLOT):
            pytest.fail("the application's code ran")

    with pytest.raises(SlotTakenError):
        await in_thread(work)


async def test_somebody_elses_workflow_has_no_free_place(storage: Storage, other: Storage) -> None:
    await other.commit([StartWorkflow(workflow("others", executor_id=OTHER))])

    for workflow_id in ("others", "unknown"):
        slot = StepSlot(workflow_id=workflow_id, step_number=0, executor_id=EXECUTOR)
        with pytest.raises(SlotTakenError):
            await in_thread(insert, storage, slot)
    assert await effects(storage) == 0


@pytest.mark.parametrize("write", [success(), ReleaseWorkflow("w", EXECUTOR)], ids=["over", "free"])
async def test_a_workflow_that_is_not_the_executors_any_more_has_no_free_place(
    storage: Storage, write: Write
) -> None:
    await storage.commit([write])

    with pytest.raises(SlotTakenError):
        await in_thread(insert, storage)


async def test_an_executor_that_left_has_no_free_place(storage: Storage) -> None:
    await storage.retire(EXECUTOR)

    with pytest.raises(SlotTakenError):
        await in_thread(insert, storage)
    assert await effects(storage) == 0


async def test_of_duplicates_in_a_race_one_commits(storage: Storage) -> None:
    results = await asyncio.gather(
        *(in_thread(insert, storage) for _ in range(10)), return_exceptions=True
    )

    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, SlotTakenError) for result in results) == 9
    assert await effects(storage) == 1


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize(
    "write",
    [record(step(output=b"other")), success(), ReleaseWorkflow("w", EXECUTOR)],
    ids=["taken", "over", "free"],
)
async def test_a_place_that_is_lost_while_the_transaction_is_open_is_refused_at_its_end(
    storage: Storage, new_storage: Adapter, write: Write, level: str
) -> None:
    if new_storage.one_writer:
        return  # no other write commits while a transaction is open
    loop = asyncio.get_running_loop()

    def work() -> None:
        with storage.blocking_transaction(SLOT, isolation_level=level) as transaction:
            transaction.session.execute(INSERT)
            lost = asyncio.run_coroutine_threadsafe(kinds(storage, write), loop)
            assert lost.result() == [OutcomeKind.DONE]
            transaction.record(step())

    with pytest.raises((SlotTakenError, StorageUnavailableError)):
        await in_thread(work)

    assert await effects(storage) == 0


async def test_threads_and_tasks_write_in_turn(storage: Storage) -> None:
    ids = [f"w{n}" for n in range(30)]
    slots = [StepSlot(workflow_id=i, step_number=0, executor_id=EXECUTOR) for i in ids]
    await storage.commit([StartWorkflow(workflow(i)) for i in ids])

    async def insert_in_task(slot: StepSlot) -> None:
        async with storage.transaction(slot) as transaction:
            await transaction.session.execute(INSERT)
            await transaction.record(step(slot.workflow_id))

    await asyncio.gather(
        *(in_thread(insert, storage, slot) for slot in slots[::2]),
        *(insert_in_task(slot) for slot in slots[1::2]),
    )

    assert await effects(storage) == 30
    runs = await storage.load_runs(ids)
    assert all(len(run.steps) == 1 for run in runs)


async def test_an_open_transaction_holds_up_no_event_loop(storage: Storage) -> None:
    opened, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with storage.blocking_transaction(SLOT) as transaction:
            transaction.session.execute(INSERT)
            opened.set()
            assert go_on.wait(60)
            transaction.record(step())

    working = asyncio.ensure_future(in_thread(work))
    await in_thread(opened.wait, 60)
    # It waits for its turn if there is one writer; the event loop runs in either case.
    inserting = asyncio.ensure_future(in_thread(insert, storage, None))
    assert await storage.get_workflow("w") is not None
    go_on.set()
    await asyncio.gather(working, inserting)

    assert await effects(storage) == 2


@pytest.mark.parametrize("level", ["SERIALIZABLE", "READ COMMITTED", "serializable", None])
async def test_an_isolation_level_is_named_as_in_sql(storage: Storage, level: str | None) -> None:
    def work() -> None:
        with storage.blocking_transaction(SLOT, isolation_level=level) as transaction:
            transaction.session.execute(INSERT)
            transaction.record(step())

    await in_thread(work)

    assert await effects(storage) == 1


async def test_an_isolation_level_that_is_unknown_is_a_mistake(storage: Storage) -> None:
    def work() -> None:
        with storage.blocking_transaction(SLOT, isolation_level="SOMETIMES"):
            pytest.fail("the application's code ran")

    with pytest.raises(DurableUsageError, match="isolation_level"):
        await in_thread(work)
