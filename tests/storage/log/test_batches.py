"""The contract of ``commit`` for batches: one transaction, an outcome for each write."""

from __future__ import annotations

import asyncio

import pytest
from support.databases.storages import kinds
from support.records import EXECUTOR, record, request, response, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import WorkflowRecord, WorkflowState
from asgi_durable.storage.writes import (
    ClaimRequest,
    ForgetRequest,
    OutcomeKind,
    ReleaseWorkflow,
    ResumeWorkflow,
    StartWorkflow,
    Write,
)

pytestmark = pytest.mark.anyio

DONE, CONFLICT = OutcomeKind.DONE, OutcomeKind.CONFLICT
FENCED, REJECTED = OutcomeKind.FENCED, OutcomeKind.REJECTED


async def test_an_empty_batch_has_no_outcomes(storage: Storage) -> None:
    assert await storage.commit([]) == []


async def test_a_whole_workflow_fits_into_one_batch(storage: Storage) -> None:
    writes = [StartWorkflow(workflow()), record(step()), record(step(number=1)), success()]

    assert await kinds(storage, *writes) == [DONE] * 4

    (run,) = await storage.load_runs(["w"])
    assert (run.workflow.state, len(run.steps)) == (WorkflowState.SUCCESS, 2)


async def test_a_whole_request_fits_into_one_batch(storage: Storage) -> None:
    child = workflow("r#1", parent_id="r", parent_step=1)
    writes = [
        ClaimRequest(request()),
        record(step("r")),
        StartWorkflow(child),
        success("r#1"),
        success("r", output=None, response=response()),
    ]

    assert await kinds(storage, *writes) == [DONE] * 5

    assert await storage.get_response("r") == response()


def mixed_writes(number: int) -> list[Write]:
    """Return ten writes of three workflows."""
    w, r, left = f"w{number}", f"r{number}", f"left{number}"
    return [
        StartWorkflow(workflow(w)),
        ClaimRequest(request(r)),
        record(step(w)),
        StartWorkflow(workflow(left, parent_id=r, parent_step=0)),
        record(step(w, 1, output=None, error=b"e")),
        record(step(left)),
        success(w),
        success(r, output=None, response=response(r)),
        ReleaseWorkflow(left, EXECUTOR),
        ForgetRequest("unknown", EXECUTOR),
    ]


async def test_a_thousand_mixed_writes_are_one_batch(storage: Storage) -> None:
    writes = [write for number in range(100) for write in mixed_writes(number)]

    assert await kinds(storage, *writes) == [DONE] * 1000

    runs = await storage.load_runs([f"w{n}" for n in range(100)])
    assert [run.workflow.state for run in runs] == [WorkflowState.SUCCESS] * 100
    assert {len(run.steps) for run in runs} == {2}
    assert await storage.get_response("r99") == response("r99")
    left = await storage.get_workflow("left99")
    assert left is not None
    assert left.executor_id is None


async def test_writes_that_belong_together_are_applied_in_order_across_workflows(
    storage: Storage,
) -> None:
    # Interleaved, as runs submit them that proceed at the same time.
    writes: list[Write] = [StartWorkflow(workflow(f"w{n}")) for n in range(20)]
    writes += [record(step(f"w{n}", number)) for number in range(5) for n in range(20)]
    writes += [success(f"w{n}") for n in range(20)]

    assert await kinds(storage, *writes) == [DONE] * len(writes)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_batch_that_is_repeated_is_done_once_more(storage: Storage, times: int) -> None:
    writes = [
        StartWorkflow(workflow()),
        record(step()),
        success(),
        ClaimRequest(request()),
        record(step("r")),
        success("r", output=None, response=response()),
    ]
    await storage.commit(writes)
    runs = await storage.load_runs(["w", "r"])

    for _ in range(times):
        outcomes = await kinds(storage, *writes[:3], *writes[4:])
        assert outcomes == [DONE] * 5

    assert await storage.load_runs(["w", "r"]) == runs
    assert await storage.get_response("r") == response()


async def test_the_same_write_twice_in_a_batch_is_done_twice(storage: Storage) -> None:
    start = StartWorkflow(workflow())

    outcomes = await kinds(storage, start, start, record(step()), record(step()), success())

    assert outcomes == [DONE] * 5


@pytest.mark.parametrize("refused", [0, 70, 75, 99])
async def test_of_many_steps_only_those_are_refused_that_have_to_be(
    storage: Storage, refused: int
) -> None:
    names = [f"w{number:02}" for number in range(100)]
    await storage.commit([StartWorkflow(workflow(name)) for name in names])
    await storage.commit([success(names[refused]), record(step(names[7]))])
    steps = [record(step(name)) for name in names]

    outcomes = await kinds(storage, *steps)

    assert outcomes == [FENCED if name == names[refused] else DONE for name in names]
    runs = await storage.load_runs(names)
    assert [len(run.steps) for run in runs] == [int(name != names[refused]) for name in names]


async def test_a_conflict_leaves_the_rest_of_its_batch_alone(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow("a")), record(step("a"))])

    outcomes = await kinds(
        storage,
        StartWorkflow(workflow("b")),
        record(step("a", output=b"other")),
        record(step("b")),
        StartWorkflow(workflow("a", created_at_us=77)),
        ResumeWorkflow("unknown", EXECUTOR, 5),
        record(step("unknown")),
        success("b"),
    )

    assert outcomes == [DONE, CONFLICT, DONE, CONFLICT, CONFLICT, FENCED, DONE]
    (run,) = await storage.load_runs(["a"])
    assert run.steps[0].output == b"1"


@pytest.mark.parametrize(
    "poisonous",
    [
        workflow("bad", name="\ud800"),
        workflow("bad\ud800"),
        workflow("bad", created_at_us=2**63),
        workflow("bad", attempts=-(2**63) - 1),
    ],
    ids=["name", "id", "time", "count"],
)
async def test_a_row_that_no_database_can_hold_is_rejected_alone(
    storage: Storage, poisonous: WorkflowRecord
) -> None:
    outcomes = await storage.commit(
        [
            StartWorkflow(workflow("good")),
            record(step("good")),
            StartWorkflow(poisonous),
            ClaimRequest(request()),
            success("good"),
        ]
    )

    assert [outcome.kind for outcome in outcomes] == [DONE, DONE, REJECTED, DONE, DONE]
    assert outcomes[2].error is not None
    assert await storage.get_workflow("bad") is None


@pytest.mark.parametrize(
    "write",
    [
        StartWorkflow(workflow("odd\0", name="zero")),
        StartWorkflow(workflow("odd", request_id="zero\0")),
        ClaimRequest(request("odd", fingerprint="zero\0")),
        record(step("good", 2**31)),
        record(step("good", 2**63)),
        success("good", finished_at_us=2**63),
        success("good", response=response("good", status_code=2**31)),
        success("good\0"),
        ReleaseWorkflow("good\0", EXECUTOR),
        ForgetRequest("good\0", EXECUTOR),
        ResumeWorkflow("good\0", EXECUTOR, 1),
        ResumeWorkflow("good", EXECUTOR, 2**63),
    ],
    ids=str,
)
async def test_a_row_that_is_at_the_limits_touches_no_other(storage: Storage, write: Write) -> None:
    # Databases differ in the values that they hold: a NUL in a text, more than 32 bits.
    outcomes = await kinds(
        storage,
        StartWorkflow(workflow("good")),
        write,
        StartWorkflow(workflow("better")),
        record(step("good")),
        record(step("better")),
        success("better"),
    )

    assert outcomes[0] is DONE
    assert outcomes[2:] == [DONE] * 4 or (outcomes[1] is DONE and outcomes[3] is FENCED)
    (run,) = await storage.load_runs(["better"])
    assert run.workflow.state is WorkflowState.SUCCESS


async def test_commits_at_once_are_all_applied(storage: Storage, other: Storage) -> None:
    batches = [[StartWorkflow(workflow(f"w{n}")), record(step(f"w{n}"))] for n in range(30)]
    writers = [storage, other]

    outcomes = await asyncio.gather(
        *(writers[n % 2].commit(batch) for n, batch in enumerate(batches))
    )

    assert {outcome.kind for batch in outcomes for outcome in batch} == {DONE}
    assert len(await storage.load_runs([f"w{n}" for n in range(30)])) == 30


async def test_of_two_starts_at_once_one_is_told_of_the_other(
    storage: Storage, other: Storage
) -> None:
    ours, theirs = workflow(), workflow(executor_id="executor-2", created_at_us=2)

    (mine,), (yours,) = await asyncio.gather(
        storage.commit([StartWorkflow(ours)]), other.commit([StartWorkflow(theirs)])
    )

    winner, loser = (ours, yours) if mine.kind is DONE else (theirs, mine)
    assert {mine.kind, yours.kind} == {DONE, CONFLICT}
    assert loser.existing == winner


async def test_batches_that_cross_do_not_wait_for_each_other_for_ever(
    storage: Storage, other: Storage
) -> None:
    ids = [f"w{n:02}" for n in range(40)]
    there = [StartWorkflow(workflow(i)) for i in ids]
    back = [StartWorkflow(workflow(i, executor_id="executor-2")) for i in reversed(ids)]

    outcomes = await asyncio.gather(storage.commit(there), other.commit(back))

    assert sum(outcome.kind is DONE for batch in outcomes for outcome in batch) == 40


async def test_what_comes_after_an_end_in_its_batch_is_refused(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request()), StartWorkflow(workflow())])
    end = success("r", output=None, response=response())

    outcomes = await kinds(storage, end, success(), record(step()))
    (again,) = await storage.commit([ClaimRequest(request())])

    assert outcomes == [DONE, DONE, FENCED]
    assert again.kind is CONFLICT
