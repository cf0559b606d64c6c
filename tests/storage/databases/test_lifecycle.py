"""The contract of ``Lifecycle``."""

from __future__ import annotations

import asyncio

import pytest
from support.databases.storages import Adapter, enter, kinds
from support.records import EXECUTOR, record, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.writes import OutcomeKind, StartWorkflow

pytestmark = pytest.mark.anyio

DONE = OutcomeKind.DONE


async def test_a_batch_survives_the_storage(storage: Storage, new_storage: Adapter) -> None:
    await storage.commit([StartWorkflow(workflow()), success()])
    await storage.close()

    again = new_storage()
    await again.open()
    found = await again.get_workflow("w")
    await again.close()

    assert found is not None
    assert found.output == b"9"


async def test_opening_leaves_what_others_run_alone(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])

    assert await kinds(storage, record(step()), success()) == [DONE, DONE]


async def test_an_empty_database_can_be_opened_by_many_at_once(new_storage: Adapter) -> None:
    storages = [new_storage() for _ in range(5)]

    await asyncio.gather(*(storage.open() for storage in storages))
    await asyncio.gather(*(enter(s, f"executor-{n}") for n, s in enumerate(storages)))
    outcomes = await asyncio.gather(
        *(
            kinds(storage, StartWorkflow(workflow(f"w{n}", executor_id=f"executor-{n}")))
            for n, storage in enumerate(storages)
        )
    )
    await asyncio.gather(*(storage.close() for storage in storages))

    assert outcomes == [[DONE]] * 5


async def test_a_storage_can_be_closed_twice(storage: Storage) -> None:
    await storage.close()
    await storage.close()


async def test_a_write_under_way_is_finished_before_the_end(
    storage: Storage, new_storage: Adapter
) -> None:
    commit = asyncio.ensure_future(kinds(storage, StartWorkflow(workflow())))
    await asyncio.sleep(0)  # it has begun
    await storage.close()
    again = new_storage()
    await again.open()

    assert await commit == [DONE]
    assert await again.get_workflow("w") is not None
    await again.close()


async def test_a_storage_can_be_used_on_several_event_loops_at_once(storage: Storage) -> None:
    def use(number: int) -> OutcomeKind:
        async def work() -> OutcomeKind:
            (kind,) = await kinds(storage, StartWorkflow(workflow(f"w{number}")))
            assert await storage.get_workflow(f"w{number}") is not None
            async with storage.transaction(None):
                pass
            return kind

        return asyncio.run(work())

    used = await asyncio.gather(*(asyncio.to_thread(use, number) for number in range(4)))

    assert used == [DONE] * 4
    assert await storage.list_pending(EXECUTOR, after="", limit=9) == ["w0", "w1", "w2", "w3"]
