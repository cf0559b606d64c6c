"""The contract of ``StepLog`` for followers: they start with a workflow's end, never without."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.databases.storages import kinds
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import WorkflowState
from asgi_durable.storage.writes import (
    ClaimRequest,
    FinishWorkflow,
    OutcomeKind,
    ReleaseWorkflow,
    ResumeWorkflow,
    StartWorkflow,
)

pytestmark = pytest.mark.anyio

DONE, FENCED, REJECTED = OutcomeKind.DONE, OutcomeKind.FENCED, OutcomeKind.REJECTED
FOLLOWERS = tuple(workflow(f"w~{n}", parent_id="w", parent_step=n, awaited=False) for n in (1, 2))


def end(**fields: object) -> FinishWorkflow:
    return success(**{"starts": FOLLOWERS} | fields)


async def followers(storage: Storage) -> list[object]:
    return [await storage.get_workflow(follower.workflow_id) for follower in FOLLOWERS]


async def test_what_an_end_starts_is_there_with_it(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(step())])

    assert await kinds(storage, record(step(number=3)), end()) == [DONE, DONE]

    assert await followers(storage) == [*FOLLOWERS]
    assert await storage.list_pending(EXECUTOR, after="", limit=9) == ["w~1", "w~2"]


async def test_a_workflow_that_starts_and_ends_at_once_starts_what_follows(
    storage: Storage,
) -> None:
    other = workflow("other")

    assert (
        await kinds(storage, StartWorkflow(workflow()), end(), StartWorkflow(other)) == [DONE] * 3
    )

    assert await followers(storage) == [*FOLLOWERS]


async def test_an_answer_starts_what_follows_it(storage: Storage) -> None:
    follower = replace(FOLLOWERS[0], parent_id="r")
    await storage.commit([ClaimRequest(request())])
    answered = success("r", output=None, response=response(), starts=(follower,))

    assert await kinds(storage, answered) == [DONE]

    assert await storage.get_workflow("w~1") == follower
    assert await storage.get_response("r") == response()


async def test_an_end_that_is_refused_starts_nothing(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), ReleaseWorkflow("w", EXECUTOR)])
    await other.commit([ResumeWorkflow("w", OTHER, 5)])

    assert await kinds(storage, end()) == [FENCED]
    assert await followers(storage) == [None, None]


async def test_the_end_of_a_dead_executor_starts_nothing(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])
    await storage.retire(EXECUTOR)

    assert await kinds(storage, end()) == [FENCED]
    assert await followers(storage) == [None, None]


async def test_an_end_whose_answer_got_lost_starts_nothing_again(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), end()])
    finished = success("w~1")
    await storage.commit([finished])

    assert await kinds(storage, end()) == [DONE]

    found = await storage.get_workflow("w~1")
    assert found is not None
    assert found.state is WorkflowState.SUCCESS


async def test_an_end_beside_a_conflict_starts_what_follows(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), StartWorkflow(workflow("taken"))])
    conflict = StartWorkflow(workflow("taken", created_at_us=7))

    assert await kinds(storage, conflict, end()) == [OutcomeKind.CONFLICT, DONE]

    assert await followers(storage) == [*FOLLOWERS]


async def test_an_end_does_not_stand_whose_follower_cannot_be_kept(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), StartWorkflow(workflow("other"))])
    impossible = replace(FOLLOWERS[0], created_at_us=2**70)

    ends = [end(starts=(FOLLOWERS[1], impossible)), success("other")]
    assert await kinds(storage, *ends) == [REJECTED, DONE]

    found = await storage.get_workflow("w")
    assert found is not None
    assert found.state is WorkflowState.PENDING
    assert await followers(storage) == [None, None]
