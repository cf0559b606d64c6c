"""The contract of ``Transactions``."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from support.databases.storages import Adapter, kinds
from support.records import EXECUTOR, OTHER, record, step, success, workflow

from asgi_durable import DurableUsageError, StorageUnavailableError
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import SlotTakenError, StepSlot
from asgi_durable.storage.writes import OutcomeKind, ReleaseWorkflow, StartWorkflow, Write

pytestmark = pytest.mark.anyio

SLOT = StepSlot(workflow_id="w", step_number=0, executor_id=EXECUTOR)


@pytest.fixture(autouse=True)
async def _started(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (name TEXT)"))


async def insert(storage: Storage, slot: StepSlot | None = SLOT) -> None:
    async with storage.transaction(slot) as transaction:
        await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
        if slot is not None:
            await transaction.record(step())


async def effects(storage: Storage) -> int:
    async with storage.transaction(None) as transaction:
        result = await transaction.session.execute(sa.text("SELECT count(*) FROM effects"))
        return result.scalar_one()


async def test_rows_and_record_are_committed_together(storage: Storage, other: Storage) -> None:
    await insert(storage)

    (run,) = await other.load_runs(["w"])
    assert run.steps == (step(),)
    assert await effects(other) == 1


async def test_an_exception_rolls_both_back(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError):
        async with storage.transaction(SLOT) as transaction:
            await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
            await transaction.record(step())
            raise ZeroDivisionError

    (run,) = await storage.load_runs(["w"])
    assert run.steps == ()
    assert await effects(storage) == 0


async def test_cancellation_rolls_both_back_and_frees_the_database(storage: Storage) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with storage.transaction(SLOT) as transaction:
            await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await effects(storage) == 0
    await insert(storage)


async def test_a_mistake_in_sql_is_the_applications_own(storage: Storage) -> None:
    with pytest.raises(sa.exc.DBAPIError):
        async with storage.transaction(SLOT) as transaction:
            await transaction.session.execute(sa.text("INSERT INTO missing VALUES ('x')"))

    await insert(storage)


async def test_what_the_session_holds_is_written_before_the_record(storage: Storage) -> None:
    async with storage.transaction(SLOT) as transaction:
        await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
        await transaction.session.commit()
        await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('y')"))
        await transaction.record(step())

    assert await effects(storage) == 2


async def test_a_commit_of_the_session_ends_nothing(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError):
        async with storage.transaction(SLOT) as transaction:
            await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
            await transaction.session.commit()
            raise ZeroDivisionError

    assert await effects(storage) == 0


async def test_a_place_that_is_recorded_is_taken(storage: Storage) -> None:
    await storage.commit([record(step())])

    with pytest.raises(SlotTakenError):
        async with storage.transaction(SLOT):
            pytest.fail("the application's code ran")


async def test_the_place_after_a_record_is_free(storage: Storage) -> None:
    await insert(storage)

    async with storage.transaction(
        StepSlot(workflow_id="w", step_number=1, executor_id=EXECUTOR)
    ) as transaction:
        await transaction.record(step(number=1))

    (run,) = await storage.load_runs(["w"])
    assert [s.step_number for s in run.steps] == [0, 1]


async def test_somebody_elses_workflow_has_no_free_place(storage: Storage, other: Storage) -> None:
    await other.commit([StartWorkflow(workflow("others", executor_id=OTHER))])

    for workflow_id in ("others", "unknown"):
        slot = StepSlot(workflow_id=workflow_id, step_number=0, executor_id=EXECUTOR)
        with pytest.raises(SlotTakenError):
            await insert(storage, slot)
    assert await effects(storage) == 0


@pytest.mark.parametrize("write", [success(), ReleaseWorkflow("w", EXECUTOR)], ids=["over", "free"])
async def test_a_workflow_that_is_not_the_executors_any_more_has_no_free_place(
    storage: Storage, write: Write
) -> None:
    await storage.commit([write])

    with pytest.raises(SlotTakenError):
        await insert(storage)


async def test_an_executor_that_left_has_no_free_place(storage: Storage) -> None:
    await storage.retire(EXECUTOR)

    with pytest.raises(SlotTakenError):
        await insert(storage)
    assert await effects(storage) == 0


async def test_of_duplicates_in_a_race_one_commits(storage: Storage) -> None:
    results = await asyncio.gather(*(insert(storage) for _ in range(10)), return_exceptions=True)

    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, SlotTakenError) for result in results) == 9
    assert await effects(storage) == 1


async def test_of_a_transaction_and_a_plain_step_at_one_place_one_is_recorded(
    storage: Storage,
) -> None:
    plain = step(output=b"plain")

    results = await asyncio.gather(
        insert(storage), kinds(storage, record(plain)), return_exceptions=True
    )

    (run,) = await storage.load_runs(["w"])
    if run.steps == (plain,):
        assert isinstance(results[0], SlotTakenError)
        assert await effects(storage) == 0
    else:
        assert results == [None, [OutcomeKind.CONFLICT]]
        assert (run.steps, await effects(storage)) == ((step(),), 1)


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

    # If the transaction cannot see the other commit, the database cannot order the two.
    with pytest.raises((SlotTakenError, StorageUnavailableError)):
        async with storage.transaction(SLOT, isolation_level=level) as transaction:
            await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
            assert await kinds(storage, write) == [OutcomeKind.DONE]
            await transaction.record(step())

    assert await effects(storage) == 0


async def test_many_transactions_at_once_all_commit(storage: Storage) -> None:
    ids = [f"w{n}" for n in range(30)]
    await storage.commit([StartWorkflow(workflow(i)) for i in ids])

    async def insert_into(workflow_id: str) -> None:
        slot = StepSlot(workflow_id=workflow_id, step_number=0, executor_id=EXECUTOR)
        async with storage.transaction(slot) as transaction:
            await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
            await transaction.record(step(workflow_id))

    await asyncio.gather(*map(insert_into, ids))

    assert await effects(storage) == 30


async def test_commits_go_on_while_transactions_come_and_go(storage: Storage) -> None:
    batches = [[StartWorkflow(workflow(f"w{n}")), success(f"w{n}")] for n in range(20)]

    await asyncio.gather(
        *(insert(storage, None) for _ in range(20)), *(storage.commit(batch) for batch in batches)
    )

    runs = await storage.load_runs([f"w{n}" for n in range(20)])
    assert all(run.workflow.is_final for run in runs)
    assert (len(runs), await effects(storage)) == (20, 20)


@pytest.mark.parametrize("level", ["SERIALIZABLE", "READ COMMITTED", "serializable", None])
async def test_an_isolation_level_is_named_as_in_sql(storage: Storage, level: str | None) -> None:
    async with storage.transaction(SLOT, isolation_level=level) as transaction:
        await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
        await transaction.record(step())

    assert await effects(storage) == 1


@pytest.mark.parametrize("level", ["SOMETIMES", ""])
async def test_an_isolation_level_that_is_unknown_is_a_mistake(
    storage: Storage, level: str
) -> None:
    with pytest.raises(DurableUsageError, match="isolation_level"):
        async with storage.transaction(SLOT, isolation_level=level):
            pytest.fail("the application's code ran")

    await insert(storage)
