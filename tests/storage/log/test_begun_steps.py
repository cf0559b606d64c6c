"""The contract of ``StepLog`` for steps that run at most once: begun first, completed later."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.databases.storages import kinds
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import NO_OUTPUT, StepRecord, WorkflowState
from asgi_durable.storage.transaction_port import SlotTakenError, StepSlot
from asgi_durable.storage.writes import (
    ClaimRequest,
    CompleteStep,
    ForgetRequest,
    OutcomeKind,
    ReleaseWorkflow,
    ResumeWorkflow,
    StartWorkflow,
    Write,
)

pytestmark = pytest.mark.anyio

DONE, CONFLICT = OutcomeKind.DONE, OutcomeKind.CONFLICT
FENCED, RESUMED = OutcomeKind.FENCED, OutcomeKind.RESUMED


def begun(workflow_id: str = "w", number: int = 0) -> StepRecord:
    return step(workflow_id, number, output=None, error=None)


def succeeded(workflow_id: str = "w", number: int = 0) -> StepRecord:
    return replace(step(workflow_id, number), finished_at_us=7)


def failed(workflow_id: str = "w", number: int = 0) -> StepRecord:
    return step(workflow_id, number, output=NO_OUTPUT, error=b"e")


def complete(step: StepRecord, executor_id: str = EXECUTOR) -> CompleteStep:
    return CompleteStep(step, executor_id)


async def steps_of(storage: Storage, workflow_id: str = "w") -> list[StepRecord]:
    (run,) = await storage.load_runs([workflow_id])
    return list(run.steps)


@pytest.mark.parametrize("outcome", [succeeded(), failed()], ids=["succeeded", "failed"])
async def test_a_step_that_has_begun_gets_its_outcome(
    storage: Storage, outcome: StepRecord
) -> None:
    assert await kinds(storage, StartWorkflow(workflow()), record(begun())) == [DONE, DONE]
    assert await steps_of(storage) == [begun()]
    assert not begun().is_finished

    assert await kinds(storage, complete(outcome)) == [DONE]

    assert await steps_of(storage) == [outcome]
    assert outcome.is_finished


async def test_beginning_and_outcome_may_be_repeated(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(begun())])

    assert await kinds(storage, record(begun())) == [DONE]
    for _ in range(2):
        assert await kinds(storage, complete(succeeded())) == [DONE]

    assert await steps_of(storage) == [succeeded()]


async def test_the_first_outcome_stands(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(begun()), complete(failed())])

    assert await kinds(storage, complete(succeeded())) == [CONFLICT]
    assert await kinds(storage, record(begun())) == [CONFLICT]

    assert await steps_of(storage) == [failed()]


async def test_what_has_begun_does_not_begin_again(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(begun())])

    assert await kinds(storage, record(replace(begun(), finished_at_us=9))) == [CONFLICT]
    assert await kinds(storage, record(succeeded())) == [CONFLICT]

    assert await steps_of(storage) == [begun()]


async def test_what_has_not_begun_gets_no_outcome(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])

    assert await kinds(storage, complete(succeeded())) == [FENCED]
    assert await steps_of(storage) == []


async def test_an_outcome_of_somebody_who_does_not_own_the_workflow_is_fenced(
    storage: Storage, other: Storage
) -> None:
    await storage.commit([StartWorkflow(workflow()), record(begun())])
    await storage.commit([ReleaseWorkflow("w", EXECUTOR)])
    await other.commit([ResumeWorkflow("w", OTHER, 8)])

    assert await kinds(storage, complete(succeeded())) == [FENCED]
    assert await steps_of(storage) == [begun()]
    assert await kinds(other, complete(failed(), OTHER)) == [DONE]


async def test_an_outcome_of_a_dead_executor_is_fenced(storage: Storage, other: Storage) -> None:
    await other.commit([StartWorkflow(workflow(executor_id=OTHER)), record(begun(), OTHER)])
    await other.retire(OTHER)

    assert await kinds(other, complete(succeeded(), OTHER)) == [FENCED]
    assert await steps_of(storage) == [begun()]


async def test_a_workflow_that_is_over_gets_no_outcome_any_more(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(begun()), success()])

    assert await kinds(storage, complete(succeeded())) == [FENCED]
    assert await steps_of(storage) == [begun()]


async def test_an_outcome_the_next_steps_and_the_end_fit_into_one_batch(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request()), record(begun("r"))])
    writes = [
        complete(succeeded("r")),
        record(step("r", 1)),
        success("r", output=None, response=response()),
    ]

    assert await kinds(storage, *writes) == [DONE] * 3

    assert await steps_of(storage, "r") == [succeeded("r"), step("r", 1)]
    assert await storage.get_response("r") == response()


async def test_beginning_and_outcome_fit_into_one_batch(storage: Storage) -> None:
    writes = [StartWorkflow(workflow()), record(begun()), complete(succeeded()), success()]

    assert await kinds(storage, *writes) == [DONE] * 4

    assert await steps_of(storage) == [succeeded()]


async def test_of_many_outcomes_one_that_is_refused_is_refused_alone(storage: Storage) -> None:
    ids = [f"w{number}" for number in range(70)]
    writes: list[Write] = []
    for workflow_id in ids:
        writes += [StartWorkflow(workflow(workflow_id)), record(begun(workflow_id))]
    await storage.commit(writes)
    await storage.commit([complete(failed("w7"))])

    plain = [record(step(workflow_id, 1)) for workflow_id in ids]
    outcomes = await kinds(storage, *(complete(succeeded(i)) for i in ids), *plain)

    assert outcomes == [*([DONE] * 7), CONFLICT, *([DONE] * 132)]
    assert await steps_of(storage, "w7") == [failed("w7"), step("w7", 1)]
    assert await steps_of(storage, "w8") == [succeeded("w8"), step("w8", 1)]


async def test_an_outcome_may_come_in_the_batch_that_resumes(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(begun())])
    await storage.commit([ReleaseWorkflow("w", EXECUTOR)])

    writes = [ResumeWorkflow("w", EXECUTOR, 8), complete(failed())]
    assert await kinds(storage, *writes) == [DONE, DONE]

    assert await steps_of(storage) == [failed()]


async def test_a_request_in_which_a_step_has_begun_is_not_forgotten(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request()), record(begun("r"))])

    await storage.commit([ForgetRequest("r", EXECUTOR)])

    assert await steps_of(storage, "r") == [begun("r")]


async def test_a_retry_drops_neither_a_beginning_nor_a_failure_that_stands(
    storage: Storage,
) -> None:
    for standing in (begun("r", 1), failed("r", 1)):
        plain = [step("r", number, output=None, error=b"e") for number in (0, 2)]
        await storage.commit([ClaimRequest(request()), *map(record, [plain[0], standing])])
        await storage.commit([record(plain[1])])

        assert await kinds(storage, ClaimRequest(request())) == [RESUMED]

        # The failure before it stays too: the code saw that failure, and continued.
        assert await steps_of(storage, "r") == [plain[0], standing]
        await storage.commit([success("r", output=None, response=response(expires_at_us=1))])
        assert await storage.forget_request("r", 2_000)


async def test_a_retry_drops_nothing_of_that_in_a_called_child_either(storage: Storage) -> None:
    child = workflow("r#0", parent_id="r", parent_step=0)
    log = [begun("r#0", 0), failed("r#0", 1), step("r#0", 2, output=None, error=b"e")]
    end = success("r#0", state=WorkflowState.ERROR, output=None, error=b"e")
    await storage.commit([ClaimRequest(request()), StartWorkflow(child), *map(record, log), end])

    assert await kinds(storage, ClaimRequest(request())) == [RESUMED]

    (run,) = await storage.load_runs(["r#0"])
    assert (run.workflow.state, list(run.steps)) == (WorkflowState.PENDING, log[:2])


async def test_no_transaction_begins_where_a_step_has_begun(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(begun())])
    slot = StepSlot(workflow_id="w", step_number=0, executor_id=EXECUTOR)

    with pytest.raises(SlotTakenError):
        async with storage.transaction(slot):
            raise AssertionError
