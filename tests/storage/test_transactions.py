"""The contract of ``Transactions``."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from support.records import EXECUTOR, record, step, success, workflow

from asgi_durable.storage.protocol import SlotTakenError, StepSlot, Storage
from asgi_durable.storage.writes import StartWorkflow

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


async def test_rows_and_record_are_committed_together(storage: Storage) -> None:
    await insert(storage)

    (run,) = await storage.load_runs(["w"])
    assert run.steps == (step(),)
    assert await effects(storage) == 1


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


async def test_a_place_that_is_recorded_is_taken(storage: Storage) -> None:
    await storage.commit([record(step())])

    with pytest.raises(SlotTakenError):
        await insert(storage)
    assert await effects(storage) == 0


async def test_somebody_elses_workflow_has_no_free_place(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow("other", executor_id="executor-2"))])

    for workflow_id in ("other", "unknown"):
        slot = StepSlot(workflow_id=workflow_id, step_number=0, executor_id=EXECUTOR)
        with pytest.raises(SlotTakenError):
            await insert(storage, slot)


async def test_a_finished_workflow_has_no_free_place(storage: Storage) -> None:
    await storage.commit([success()])

    with pytest.raises(SlotTakenError):
        await insert(storage)


async def test_of_twins_in_a_race_one_commits(storage: Storage) -> None:
    results = await asyncio.gather(*(insert(storage) for _ in range(10)), return_exceptions=True)

    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, SlotTakenError) for result in results) == 9
    assert await effects(storage) == 1
