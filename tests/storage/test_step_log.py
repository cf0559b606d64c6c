"""The contract of ``StepLog`` and ``Lifecycle``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from support.records import EXECUTOR, record, request, response, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import WorkflowState
from asgi_durable.storage.writes import (
    ClaimRequest,
    ForgetRequest,
    OutcomeKind,
    ResumeWorkflow,
    StartWorkflow,
)

pytestmark = pytest.mark.anyio

DONE, CONFLICT = OutcomeKind.DONE, OutcomeKind.CONFLICT
FENCED, RESUMED = OutcomeKind.FENCED, OutcomeKind.RESUMED


async def kinds(storage: Storage, *writes) -> list[OutcomeKind]:
    return [outcome.kind for outcome in await storage.commit(writes)]


async def test_what_is_committed_is_read_back(storage: Storage) -> None:
    started = workflow()

    assert await kinds(storage, StartWorkflow(started), record(step())) == [DONE, DONE]

    assert await storage.get_workflow("w") == started
    (run,) = await storage.load_runs(["w", "unknown"])
    assert (run.workflow, run.steps, run.children) == (started, (step(),), ())


async def test_a_whole_workflow_fits_into_one_batch(storage: Storage) -> None:
    writes = [StartWorkflow(workflow()), record(step()), record(step(number=1)), success()]

    assert await kinds(storage, *writes) == [DONE] * 4

    found = await storage.get_workflow("w")
    assert found is not None
    assert (found.state, found.output, found.updated_at_us) == (WorkflowState.SUCCESS, b"9", 3)


async def test_a_batch_survives_the_storage(
    storage: Storage, new_storage: Callable[[], Storage]
) -> None:
    await storage.commit([StartWorkflow(workflow()), success()])
    await storage.close()

    again = new_storage()
    await again.open("executor-2")
    found = await again.get_workflow("w")
    await again.close()

    assert found is not None
    assert found.state is WorkflowState.SUCCESS


async def test_an_id_that_is_taken_conflicts_and_shows_the_row(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])

    (outcome,) = await storage.commit([StartWorkflow(workflow(created_at_us=5, name="other"))])

    assert outcome.kind is CONFLICT
    assert outcome.existing == workflow()


async def test_a_commit_that_is_repeated_is_done_once_more(storage: Storage) -> None:
    writes = [StartWorkflow(workflow()), record(step()), success()]
    await storage.commit(writes)

    assert await kinds(storage, *writes) == [DONE] * 3


async def test_a_conflict_leaves_the_rest_of_its_batch_alone(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow("a")), record(step("a"))])

    outcomes = await kinds(
        storage,
        StartWorkflow(workflow("b")),
        record(step("a", output=b"other")),
        record(step("b")),
        success("b"),
    )

    assert outcomes == [DONE, CONFLICT, DONE, DONE]
    (run,) = await storage.load_runs(["a"])
    assert run.steps[0].output == b"1"


async def test_a_row_that_the_database_cannot_hold_is_rejected_alone(storage: Storage) -> None:
    outcomes = await kinds(
        storage,
        StartWorkflow(workflow("good")),
        StartWorkflow(workflow("bad", name="\ud800")),
        success("good"),
    )

    assert outcomes == [DONE, OutcomeKind.REJECTED, DONE]
    assert await storage.get_workflow("bad") is None


async def test_steps_and_ends_of_somebody_elses_workflow_are_fenced(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow(executor_id="other"))])

    assert await kinds(storage, record(step()), success()) == [FENCED, FENCED]


async def test_a_finished_workflow_takes_no_steps_and_no_second_end(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), success()])

    assert await kinds(storage, record(step()), success(output=b"other")) == [FENCED, FENCED]


async def test_an_executor_that_is_dead_writes_nothing(
    storage: Storage, new_storage: Callable[[], Storage]
) -> None:
    await storage.commit([StartWorkflow(workflow())])
    async with storage.transaction(None) as transaction:
        from asgi_durable.storage.tables import executors

        await transaction.session.execute(executors.delete())

    outcomes = await kinds(storage, record(step()), success(), StartWorkflow(workflow("new")))

    assert outcomes == [FENCED] * 3
    assert await storage.get_workflow("new") is None


async def test_opening_takes_over_functions_and_frees_requests(
    storage: Storage, new_storage: Callable[[], Storage]
) -> None:
    await storage.commit(
        [StartWorkflow(workflow("a")), ClaimRequest(request("r")), StartWorkflow(workflow("b"))]
    )
    await storage.commit([success("b")])
    await storage.close()

    again = new_storage()
    await again.open("executor-2")
    taken, freed, over = [await again.get_workflow(i) for i in ("a", "r", "b")]
    pending = await again.list_pending("executor-2", after="", limit=10)
    await again.close()

    assert taken is not None
    assert freed is not None
    assert over is not None
    assert taken.executor_id == "executor-2"
    assert freed.executor_id is None
    assert over.executor_id == EXECUTOR
    assert pending == ["a"]


async def test_a_resumed_workflow_counts_its_executions(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])

    assert await kinds(storage, ResumeWorkflow("w", EXECUTOR, 8)) == [DONE]
    assert await kinds(storage, ResumeWorkflow("w", "other", 9)) == [FENCED]

    found = await storage.get_workflow("w")
    assert found is not None
    assert (found.attempts, found.updated_at_us) == (2, 8)


async def test_pending_workflows_come_in_pages(storage: Storage) -> None:
    ids = [f"w{number}" for number in range(5)]
    await storage.commit([StartWorkflow(workflow(i)) for i in ids])

    first = await storage.list_pending(EXECUTOR, after="", limit=3)
    second = await storage.list_pending(EXECUTOR, after=first[-1], limit=3)

    assert first + second == ids


async def test_children_are_part_of_the_parents_log(storage: Storage) -> None:
    child = workflow("w#0", parent_id="w", parent_step=0)
    await storage.commit([StartWorkflow(workflow()), StartWorkflow(child)])

    (run,) = await storage.load_runs(["w"])

    assert run.children == (child,)


async def test_a_request_is_claimed_once(storage: Storage) -> None:
    other = request(executor_id="other", created_at_us=9)

    assert await kinds(storage, ClaimRequest(other)) == [DONE]
    (outcome,) = await storage.commit([ClaimRequest(request())])

    assert outcome.kind is CONFLICT
    assert outcome.existing == other


async def test_a_request_that_nobody_runs_is_resumed_by_its_retry(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request(executor_id=None))])

    retry = request(request_id="r2", updated_at_us=7)
    assert await kinds(storage, ClaimRequest(retry)) == [RESUMED]

    found = await storage.get_workflow("r")
    assert found is not None
    assert (found.executor_id, found.attempts, found.request_id) == (EXECUTOR, 2, "r2")


async def test_a_retry_with_another_fingerprint_conflicts(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request(executor_id=None))])

    assert await kinds(storage, ClaimRequest(request(fingerprint="v1:bb"))) == [CONFLICT]


async def test_an_answer_is_kept_with_the_end_of_its_request(storage: Storage) -> None:
    end = success("r", output=None, response=response())
    assert await kinds(storage, ClaimRequest(request()), end) == [DONE, DONE]

    assert await storage.get_response("r") == response()
    assert await storage.get_response("unknown") is None
    (outcome,) = await storage.commit([ClaimRequest(request())])
    assert outcome.kind is CONFLICT
    assert outcome.existing is not None
    assert outcome.existing.is_final


async def test_a_fenced_end_keeps_no_answer(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request(executor_id="other"))])

    assert await kinds(storage, success("r", response=response())) == [FENCED]
    assert await storage.get_response("r") is None


async def test_a_request_without_a_log_is_forgotten(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request())])

    assert await kinds(storage, ForgetRequest("r", EXECUTOR)) == [DONE]
    assert await storage.get_workflow("r") is None


@pytest.mark.parametrize("log", ["step", "child"])
async def test_a_request_with_a_log_is_never_forgotten(storage: Storage, log: str) -> None:
    entry = (
        record(step("r"))
        if log == "step"
        else StartWorkflow(workflow("r#0", parent_id="r", parent_step=0))
    )
    await storage.commit([ClaimRequest(request()), entry])

    await storage.commit([ForgetRequest("r", EXECUTOR)])

    assert await storage.get_workflow("r") is not None


async def resumed_log(storage: Storage, workflow_id: str) -> list[tuple[int, str]]:
    (run,) = await storage.load_runs([workflow_id])
    entries = [(s.step_number, "error" if s.error else "output") for s in run.steps]
    entries += [(c.parent_step or 0, c.state.value) for c in run.children]
    return sorted(entries)


async def test_a_retry_drops_the_failures_that_no_success_follows(storage: Storage) -> None:
    await storage.commit(
        [
            ClaimRequest(request(executor_id=EXECUTOR)),
            record(step("r", 0, output=None, error=b"caught")),
            record(step("r", 1)),
            record(step("r", 2, output=None, error=b"e")),
            record(step("r", 3, output=None, error=b"e")),
        ]
    )

    assert await kinds(storage, ClaimRequest(request())) == [RESUMED]

    assert await resumed_log(storage, "r") == [(0, "error"), (1, "output")]


async def test_a_called_child_that_failed_is_resumed_with_its_own_failures_dropped(
    storage: Storage,
) -> None:
    error = {"state": WorkflowState.ERROR, "output": None, "error": b"e"}
    await storage.commit(
        [
            ClaimRequest(request()),
            record(step("r", 0)),
            StartWorkflow(workflow("r#1", parent_id="r", parent_step=1)),
            record(step("r#1", 0)),
            record(step("r#1", 1, output=None, error=b"e")),
            success("r#1", **error),
        ]
    )

    assert await kinds(storage, ClaimRequest(request())) == [RESUMED]

    assert await resumed_log(storage, "r") == [(0, "output"), (1, "PENDING")]
    assert await resumed_log(storage, "r#1") == [(0, "output")]


async def test_a_started_child_that_failed_keeps_its_fate(storage: Storage) -> None:
    child = workflow("r#0", parent_id="r", parent_step=0, awaited=False)
    error = {"state": WorkflowState.ERROR, "output": None, "error": b"e"}
    await storage.commit([ClaimRequest(request()), StartWorkflow(child), success("r#0", **error)])

    await storage.commit([ClaimRequest(request())])

    assert await resumed_log(storage, "r") == [(0, "ERROR")]


async def test_commits_at_once_are_all_applied(storage: Storage) -> None:
    batches = [[StartWorkflow(workflow(f"w{n}")), record(step(f"w{n}"))] for n in range(30)]

    outcomes = await asyncio.gather(*(storage.commit(batch) for batch in batches))

    assert {outcome.kind for batch in outcomes for outcome in batch} == {DONE}
    assert len(await storage.load_runs([f"w{n}" for n in range(30)])) == 30
