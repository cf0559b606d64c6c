"""The contract of ``take_over`` for requests that continue without their client."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.databases.storages import (
    TINY_LEASE_SECONDS,
    WORK,
    OpenStorage,
    beat,
    kinds,
    take_over,
    until,
)
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.storage.writes import (
    ClaimRequest,
    OutcomeKind,
    ReleaseWorkflow,
    StartWorkflow,
)

pytestmark = pytest.mark.anyio

ALL = replace(WORK, requests=True)
DONE, RESUMED = OutcomeKind.DONE, OutcomeKind.RESUMED


def recoverable(workflow_id: str = "r", **fields: object) -> WorkflowRecord:
    return request(workflow_id, **{"input": b"all of it", "executor_id": OTHER} | fields)


async def test_what_an_executor_left_is_taken_over_by_who_serves_requests(
    storage: Storage, other: Storage
) -> None:
    await other.commit(
        [
            ClaimRequest(recoverable()),
            record(step("r"), OTHER),
            ClaimRequest(request("its client's", executor_id=OTHER)),
            StartWorkflow(workflow("w", executor_id=OTHER)),
        ]
    )
    await other.retire(OTHER)

    assert (await beat(storage, runnable=WORK)).has_orphans
    assert await take_over(storage, runnable=WORK) == ["w"]
    assert not (await beat(storage, runnable=WORK)).has_orphans
    assert (await beat(storage, runnable=ALL)).has_orphans
    (found,) = await storage.take_over(EXECUTOR, runnable=ALL, limit=9, suspects=False)

    taken = found.workflow
    assert (taken.executor_id, taken.attempts, taken.crashes) == (EXECUTOR, 2, 0)
    assert taken.input == b"all of it"
    answered = success("r", output=None, response=response())
    assert await kinds(storage, record(step("r", number=1)), answered) == [DONE, DONE]
    assert not (await beat(storage, runnable=ALL)).has_orphans


async def test_one_that_failed_waits_for_its_client(storage: Storage, other: Storage) -> None:
    await other.commit([ClaimRequest(recoverable()), ReleaseWorkflow("r", OTHER)])
    await other.retire(OTHER)

    assert not (await beat(storage, runnable=ALL)).has_orphans
    assert await take_over(storage, runnable=ALL) == []
    assert await kinds(storage, ClaimRequest(request())) == [RESUMED]

    found = await storage.get_workflow("r")
    assert found is not None
    assert (found.input, found.executor_id) == (b"all of it", EXECUTOR)


async def test_one_that_its_client_has_claimed_again_is_the_claims(
    storage: Storage, other: Storage
) -> None:
    await other.commit([ClaimRequest(recoverable())])
    await other.retire(OTHER)
    await storage.commit([ClaimRequest(request())])

    assert await take_over(storage, runnable=ALL) == []


async def test_one_that_was_tried_in_vain_is_left(storage: Storage, other: Storage) -> None:
    await other.commit([ClaimRequest(recoverable())])
    await other.retire(OTHER)

    tried = replace(ALL, excluded_ids=frozenset({"r"}))

    assert not (await beat(storage, runnable=tried)).has_orphans
    assert await take_over(storage, runnable=tried) == []
    assert await take_over(storage, runnable=ALL) == ["r"]


async def test_they_are_in_order_with_functions_up_to_a_limit(
    storage: Storage, other: Storage
) -> None:
    ids = "abcd"
    writes = [
        ClaimRequest(recoverable(i)) if i in "ac" else StartWorkflow(workflow(i, executor_id=OTHER))
        for i in ids
    ]
    await other.commit(writes)
    await other.retire(OTHER)

    batches = [await take_over(storage, runnable=ALL, limit=3) for _ in range(3)]

    assert batches == [["a", "b", "c"], ["d"], []]


async def test_deaths_of_its_owners_are_counted(
    storage: Storage, open_storage: OpenStorage
) -> None:
    first = await open_storage("first", lease_seconds=TINY_LEASE_SECONDS)
    await first.commit([ClaimRequest(recoverable(executor_id="first"))])

    async def is_orphaned() -> bool:
        return (await beat(storage, runnable=ALL)).has_orphans

    await until(is_orphaned)
    second = await open_storage("second", lease_seconds=TINY_LEASE_SECONDS)
    assert await take_over(second, "second", runnable=ALL) == ["r"]
    await until(is_orphaned)

    assert await take_over(storage, runnable=ALL) == []
    (taken,) = await storage.take_over(EXECUTOR, runnable=ALL, limit=9, suspects=True)
    assert (taken.workflow.attempts, taken.workflow.crashes) == (3, 2)


async def test_an_executor_that_left_nothing_else_is_not_forgotten_before_it(
    storage: Storage, other: Storage, open_storage: OpenStorage
) -> None:
    await other.commit([ClaimRequest(recoverable())])
    await other.retire(OTHER)
    await open_storage("registered later")
    for _ in range(2):
        await beat(storage, runnable=WORK)

    assert await take_over(storage, runnable=ALL) == ["r"]


async def test_a_function_is_never_taken_for_a_request(storage: Storage, other: Storage) -> None:
    await other.commit([StartWorkflow(workflow("w", executor_id=OTHER))])
    await other.retire(OTHER)
    none = replace(ALL, names=frozenset())

    assert (await storage.get_workflow("w")) is not None
    assert not (await beat(storage, runnable=none)).has_orphans
    assert await take_over(storage, runnable=none) == []
