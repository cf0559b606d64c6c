"""The contract of ``StepLog`` for workflows and their steps."""

from __future__ import annotations

import pytest
from support.databases.storages import kinds
from support.records import EXECUTOR, OTHER, record, request, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import WorkflowState
from asgi_durable.storage.writes import (
    ClaimRequest,
    OutcomeKind,
    ReleaseWorkflow,
    ResumeWorkflow,
    StartWorkflow,
)

pytestmark = pytest.mark.anyio

DONE, CONFLICT, FENCED = OutcomeKind.DONE, OutcomeKind.CONFLICT, OutcomeKind.FENCED


async def test_what_is_committed_is_read_back(storage: Storage) -> None:
    started = workflow(
        attempts=3,
        crashes=1,
        crashed_at_entry=2,
        request_id=None,
        input=None,
        trace_context="00-1-2-01 vendor=x\nkey=value",
        last_span="00-1-3-01",
    )

    assert await kinds(storage, StartWorkflow(started), record(step())) == [DONE, DONE]

    assert await storage.get_workflow("w") == started
    (run,) = await storage.load_runs(["w", "unknown"])
    assert (run.workflow, run.steps, run.children) == (started, (step(),), ())


async def test_what_is_unknown_is_not_there(storage: Storage) -> None:
    assert await storage.get_workflow("unknown") is None
    assert await storage.get_response("unknown") is None
    assert await storage.load_runs([]) == []
    assert await storage.list_pending("unknown", after="", limit=9) == []


@pytest.mark.parametrize("workflow_id", ["zero\0", "\ud800"])
async def test_what_no_database_can_hold_is_not_there(storage: Storage, workflow_id: str) -> None:
    assert await storage.get_workflow(workflow_id) is None
    assert await storage.get_response(workflow_id) is None
    assert await storage.load_runs([workflow_id]) == []


async def test_what_one_storage_commits_another_one_reads(storage: Storage, other: Storage) -> None:
    assert await other.get_workflow("w") is None

    await storage.commit([StartWorkflow(workflow()), record(step())])

    (run,) = await other.load_runs(["w"])
    assert run.steps == (step(),)


async def test_text_and_bytes_of_every_kind_are_kept(storage: Storage) -> None:
    every_byte = bytes(range(256)) * 5000
    started = workflow("w#0:ä'\"\\% 🦊\n", name="größe.<locals>.f", input=every_byte)

    assert await kinds(storage, StartWorkflow(started)) == [DONE]

    assert await storage.get_workflow(started.workflow_id) == started


async def test_steps_are_in_order_of_their_numbers(storage: Storage) -> None:
    numbers = [10, 2, 0, 11, 1]
    await storage.commit([StartWorkflow(workflow()), *(record(step(number=n)) for n in numbers)])

    (run,) = await storage.load_runs(["w"])

    assert [s.step_number for s in run.steps] == sorted(numbers)


async def test_children_are_part_of_the_parents_log(storage: Storage) -> None:
    child = workflow("w#0", parent_id="w", parent_step=0)
    grandchild = workflow("w#0#0", parent_id="w#0", parent_step=0)
    await storage.commit([StartWorkflow(w) for w in (workflow(), child, grandchild)])

    (run,) = await storage.load_runs(["w"])

    assert run.children == (child,)


async def test_a_workflow_ends_once(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])

    assert await kinds(storage, success()) == [DONE]

    found = await storage.get_workflow("w")
    assert found is not None
    assert (found.state, found.output, found.updated_at_us) == (WorkflowState.SUCCESS, b"9", 3)
    assert await kinds(storage, record(step()), success(output=b"other")) == [FENCED, FENCED]


@pytest.mark.parametrize("state", [WorkflowState.ERROR, WorkflowState.RETRIES_EXCEEDED])
async def test_a_workflow_can_end_in_an_error(storage: Storage, state: WorkflowState) -> None:
    end = success(state=state, output=None, error=b"e")
    await storage.commit([StartWorkflow(workflow()), end])

    found = await storage.get_workflow("w")

    assert found is not None
    assert found.is_final
    assert (found.state, found.output, found.error) == (state, None, b"e")


async def test_an_id_that_is_taken_conflicts_and_shows_the_row(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])

    (outcome,) = await storage.commit([StartWorkflow(workflow(created_at_us=5, name="other"))])

    assert outcome.kind is CONFLICT
    assert outcome.existing == workflow()


async def test_a_place_with_another_outcome_conflicts(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(step())])

    assert await kinds(storage, record(step(output=b"other"))) == [CONFLICT]

    (run,) = await storage.load_runs(["w"])
    assert run.steps == (step(),)


async def test_steps_and_ends_of_somebody_elses_workflow_are_fenced(
    storage: Storage, other: Storage
) -> None:
    await other.commit([StartWorkflow(workflow(executor_id=OTHER))])

    assert await kinds(storage, record(step()), success()) == [FENCED, FENCED]

    (run,) = await storage.load_runs(["w"])
    assert (run.workflow.state, run.steps) == (WorkflowState.PENDING, ())


async def test_steps_and_ends_of_an_unknown_workflow_are_fenced(storage: Storage) -> None:
    assert await kinds(storage, record(step()), success()) == [FENCED, FENCED]


async def test_an_executor_that_was_never_registered_writes_nothing(storage: Storage) -> None:
    assert await kinds(storage, StartWorkflow(workflow(executor_id="unknown"))) == [FENCED]
    assert await storage.get_workflow("w") is None


async def test_pending_workflows_come_in_pages_in_order_of_id(
    storage: Storage, other: Storage
) -> None:
    await storage.commit([StartWorkflow(workflow(f"w{n}")) for n in (3, 0, 4, 1)])
    await storage.commit([ClaimRequest(request("w2")), StartWorkflow(workflow("over"))])
    await storage.commit([success("over")])
    await other.commit([StartWorkflow(workflow("others", executor_id=OTHER))])

    first = await storage.list_pending(EXECUTOR, after="", limit=3)
    second = await storage.list_pending(EXECUTOR, after=first[-1], limit=3)

    assert (first, second) == (["w0", "w1", "w2"], ["w3", "w4"])


async def test_workflows_of_unknown_functions_that_nobody_owns_are_listed(
    storage: Storage, other: Storage
) -> None:
    await storage.commit([StartWorkflow(workflow(i)) for i in ("w1", "w0", "over", "owned")])
    await storage.commit([ClaimRequest(request("r")), success("over")])
    await storage.commit([ReleaseWorkflow(i, EXECUTOR) for i in ("w0", "w1", "r")])
    await other.commit([StartWorkflow(workflow("left", executor_id=OTHER))])

    async def unknown(*names: str, limit: int = 9) -> list[str]:
        found = await storage.list_unknown(names, limit=limit)
        return [one.workflow_id for one in found]

    assert await unknown() == ["w0", "w1"]
    await other.retire(OTHER)
    assert await unknown("other") == ["left", "w0", "w1"]
    assert await unknown(limit=2) == ["left", "w0"]
    assert await unknown("work", "other") == []


async def test_ids_are_in_order_of_their_code_points(storage: Storage) -> None:
    ids = ["A", "Z", "_", "a", "a-b", "a#0", "aa", "z", "ä"]
    await storage.commit([StartWorkflow(workflow(i)) for i in ids])

    pages = [await storage.list_pending(EXECUTOR, after=i, limit=1) for i in ["", *sorted(ids)]]

    assert pages == [*([i] for i in sorted(ids)), []]


async def test_a_workflow_of_its_own_is_resumed_and_counts_its_executions(
    storage: Storage,
) -> None:
    await storage.commit([StartWorkflow(workflow())])

    assert await kinds(storage, ResumeWorkflow("w", EXECUTOR, 8)) == [DONE]

    found = await storage.get_workflow("w")
    assert found is not None
    assert (found.executor_id, found.attempts, found.updated_at_us) == (EXECUTOR, 2, 8)


async def test_a_workflow_that_was_released_is_resumed_by_anybody(
    storage: Storage, other: Storage
) -> None:
    await storage.commit([StartWorkflow(workflow())])
    assert await kinds(storage, ReleaseWorkflow("w", EXECUTOR)) == [DONE]

    assert await kinds(other, ResumeWorkflow("w", OTHER, 8)) == [DONE]

    assert await kinds(storage, record(step())) == [FENCED]
    assert await kinds(other, record(step(), OTHER)) == [DONE]


async def test_a_workflow_that_somebody_else_runs_is_not_resumed(
    storage: Storage, other: Storage
) -> None:
    await storage.commit([StartWorkflow(workflow())])

    (outcome,) = await other.commit([ResumeWorkflow("w", OTHER, 8)])

    assert outcome.kind is CONFLICT
    assert outcome.existing == workflow() == await storage.get_workflow("w")


async def test_a_workflow_that_is_finished_is_not_resumed(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), success()])

    (outcome,) = await storage.commit([ResumeWorkflow("w", EXECUTOR, 8)])

    assert outcome.kind is CONFLICT
    assert outcome.existing is not None
    assert outcome.existing == await storage.get_workflow("w")
    assert outcome.existing.is_final


async def test_a_workflow_that_is_unknown_is_not_resumed(storage: Storage) -> None:
    (outcome,) = await storage.commit([ResumeWorkflow("unknown", EXECUTOR, 8)])

    assert (outcome.kind, outcome.existing) == (CONFLICT, None)


async def test_a_release_changes_nothing_that_is_not_its_executors_and_pending(
    storage: Storage, other: Storage
) -> None:
    await other.commit([StartWorkflow(workflow("others", executor_id=OTHER))])
    await storage.commit([StartWorkflow(workflow("over")), success("over")])
    before = [await storage.get_workflow(i) for i in ("others", "over")]

    releases = [ReleaseWorkflow(i, EXECUTOR) for i in ("others", "over", "unknown")]
    assert await kinds(storage, *releases) == [DONE] * 3

    assert [await storage.get_workflow(i) for i in ("others", "over")] == before
