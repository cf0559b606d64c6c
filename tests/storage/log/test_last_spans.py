"""The contract of ``SetLastSpan``: a row names the span of its latest run."""

from __future__ import annotations

import pytest
from support.databases.storages import kinds
from support.records import EXECUTOR, OTHER, record, request, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.writes import (
    ClaimRequest,
    OutcomeKind,
    ReleaseWorkflow,
    ResumeWorkflow,
    SetLastSpan,
    StartWorkflow,
)

pytestmark = pytest.mark.anyio

DONE, FENCED = OutcomeKind.DONE, OutcomeKind.FENCED
RESUMED = OutcomeKind.RESUMED
SET = SetLastSpan("w", EXECUTOR, "second")


async def last_span_of(storage: Storage, workflow_id: str = "w") -> str | None:
    found = await storage.get_workflow(workflow_id)
    assert found is not None
    return found.last_span


async def test_a_workflow_names_its_latest_span(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow(last_span="first"))])
    assert await last_span_of(storage) == "first"

    # Again, as if the first result had been lost.
    for _ in range(2):
        assert await kinds(storage, SET) == [DONE]
        assert await last_span_of(storage) == "second"


async def test_it_fits_into_one_batch_with_the_rest_of_an_execution(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])
    writes = [SET, record(step()), success()]

    for _ in range(2):
        assert await kinds(storage, *writes) == [DONE] * 3
    assert await last_span_of(storage) == "second"


async def test_it_is_set_before_the_workflow_is_given_up(storage: Storage) -> None:
    writes = [StartWorkflow(workflow()), SET, ReleaseWorkflow("w", EXECUTOR)]

    assert await kinds(storage, *writes) == [DONE] * 3

    assert await last_span_of(storage) == "second"


async def test_of_many_writes_each_sets_its_own_and_the_last_one_counts(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow(name)) for name in ("w1", "w2", "w3")])

    outcomes = await kinds(
        storage,
        SetLastSpan("w2", EXECUTOR, "b"),
        SetLastSpan("w1", EXECUTOR, "a"),
        SetLastSpan("unknown", EXECUTOR, "x"),
        SetLastSpan("w2", EXECUTOR, "c"),
    )

    assert outcomes == [DONE] * 4
    assert [await last_span_of(storage, name) for name in ("w1", "w2", "w3")] == ["a", "c", None]


async def test_it_is_kept_while_others_take_the_workflow(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow(last_span="first"))])
    await storage.commit([ReleaseWorkflow("w", EXECUTOR)])
    await other.commit([ResumeWorkflow("w", OTHER, 9)])

    # The former owner is late.
    await storage.commit([SET])

    assert await last_span_of(storage) == "first"


async def test_a_retry_of_a_request_is_told_the_span_before_its_own(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request(last_span="first"))])
    await storage.commit([ReleaseWorkflow("r", EXECUTOR)])

    (outcome,) = await storage.commit([ClaimRequest(request(last_span="second"))])

    assert outcome.kind is RESUMED
    assert await last_span_of(storage, "r") == "first"


async def test_the_dead_set_nothing(storage: Storage, other: Storage) -> None:
    await other.commit([StartWorkflow(workflow(executor_id=OTHER, last_span="first"))])
    await other.retire(OTHER)

    assert await kinds(other, SetLastSpan("w", OTHER, "second")) == [FENCED]
    assert await last_span_of(storage) == "first"
