"""The contract of ``StepLog`` for expired requests: which rows are deleted, and which stay."""

from __future__ import annotations

import asyncio

import pytest
from support.databases.storages import kinds, until
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable.storage.protocol import PUT_OFF_US, Storage
from asgi_durable.storage.records import TOMBSTONE_STATUS, ResponseRecord
from asgi_durable.storage.writes import (
    ClaimRequest,
    FinishWorkflow,
    OutcomeKind,
    ReleaseWorkflow,
    StartWorkflow,
    Write,
)

pytestmark = pytest.mark.anyio

DONE, RESUMED = OutcomeKind.DONE, OutcomeKind.RESUMED
LONG_AGO = 1000


def finished_request(
    workflow_id: str = "r", expires_at_us: int = LONG_AGO, forgotten_at_us: int | None = None
) -> list[Write]:
    """Return the writes of a request with one step and a response."""
    answer = response(
        workflow_id,
        expires_at_us=expires_at_us,
        forgotten_at_us=forgotten_at_us or expires_at_us,
    )
    end = success(workflow_id, output=None, response=answer)  # type: ignore[arg-type]
    return [ClaimRequest(request(workflow_id)), record(step(workflow_id)), end]


def child(parent_id: str, number: int = 1) -> list[Write]:
    """Return the writes of an unfinished child with one recorded step."""
    workflow_id = f"{parent_id}#{number}"
    started = workflow(workflow_id, parent_id=parent_id, parent_step=number, awaited=False)
    return [StartWorkflow(started), record(step(workflow_id))]


def end_of_child(parent_id: str, number: int = 1) -> FinishWorkflow:
    return success(f"{parent_id}#{number}")


async def sweep(
    storage: Storage, now_us: int = LONG_AGO, *, abandoned_before_us: int = 0, limit: int = 100
) -> int:
    return await storage.forget_expired(
        now_us, abandoned_before_us=abandoned_before_us, limit=limit
    )


async def rows_of(storage: Storage, *workflow_ids: str) -> set[str]:
    """Return the workflows that still have any row."""
    left = {run.workflow.workflow_id for run in await storage.load_runs(workflow_ids)}
    return left | {i for i in workflow_ids if await storage.get_response(i) is not None}


async def response_of(storage: Storage, workflow_id: str = "r") -> ResponseRecord:
    answer = await storage.get_response(workflow_id)
    assert answer is not None
    return answer


async def test_an_expired_request_is_forgotten_with_all_below_it(storage: Storage) -> None:
    below = [*child("r"), *child("r#1"), *child("r#1#1"), *child("r", 2)]
    ends = [end_of_child("r#1#1"), end_of_child("r#1"), end_of_child("r"), end_of_child("r", 2)]
    await storage.commit([*finished_request("r"), *below])
    await storage.commit(ends)

    assert await sweep(storage) == 1

    ids = ["r", "r#1", "r#1#1", "r#1#1#1", "r#2"]
    assert await rows_of(storage, *ids) == set()
    # Steps are deleted too; they would appear again if the ids were used again.
    await storage.commit([ClaimRequest(request("r")), *(StartWorkflow(workflow(i)) for i in ids)])
    assert {run.steps for run in await storage.load_runs(ids)} == {()}


async def test_the_key_of_a_forgotten_request_can_be_claimed_anew(
    storage: Storage, other: Storage
) -> None:
    await storage.commit(finished_request())

    assert await sweep(other) == 1

    assert await kinds(other, ClaimRequest(request(executor_id=OTHER))) == [DONE]


async def test_what_is_not_expired_and_what_is_no_request_stays(storage: Storage) -> None:
    await storage.commit([*finished_request("later", LONG_AGO + 1), StartWorkflow(workflow("w"))])
    await storage.commit([*child("w"), end_of_child("w"), success("w")])
    await storage.commit([StartWorkflow(workflow("free")), ReleaseWorkflow("free", EXECUTOR)])

    assert await sweep(storage, abandoned_before_us=LONG_AGO) == 0

    assert await rows_of(storage, "later", "w", "w#1", "free") == {"later", "w", "w#1", "free"}


async def test_the_longest_expired_come_first_up_to_a_limit(storage: Storage) -> None:
    for workflow_id, expires_at_us in (("c", 1), ("a", 2), ("b", 3)):
        await storage.commit(finished_request(workflow_id, expires_at_us))

    assert await sweep(storage, limit=2) == 2
    assert await rows_of(storage, "a", "b", "c") == {"b"}
    assert await sweep(storage, limit=2) == 1
    assert await sweep(storage, limit=2) == 0


# Tombstones


async def test_an_expired_request_may_leave_a_tombstone(storage: Storage) -> None:
    await storage.commit([*finished_request("r", LONG_AGO, 2000), *child("r")])
    await storage.commit([end_of_child("r")])

    assert await sweep(storage) == 1

    assert await rows_of(storage, "r", "r#1") == {"r"}
    answer = await response_of(storage)
    assert answer.is_tombstone
    assert answer == response(
        status_code=TOMBSTONE_STATUS, body=None, expires_at_us=2000, forgotten_at_us=2000
    )
    (run,) = await storage.load_runs(["r"])
    assert run.workflow.is_final
    assert run.steps == ()


async def test_a_tombstone_is_forgotten_when_its_time_is_over(storage: Storage) -> None:
    await storage.commit(finished_request("r", LONG_AGO, 2000))
    await sweep(storage)

    assert await sweep(storage, 1999) == 0
    assert await sweep(storage, 2000) == 1

    assert await rows_of(storage, "r") == set()


async def test_what_nobody_has_swept_in_time_leaves_no_tombstone(storage: Storage) -> None:
    await storage.commit(finished_request("r", LONG_AGO, 2000))

    assert await sweep(storage, 2000) == 1

    assert await rows_of(storage, "r") == set()


# Abandoned requests


async def test_a_request_that_waits_for_its_retry_for_too_long_is_forgotten(
    storage: Storage, other: Storage
) -> None:
    left = ClaimRequest(request("left", executor_id=OTHER))
    await other.commit([left, record(step("left"), OTHER)])
    await other.retire(OTHER)
    await storage.commit([ClaimRequest(request("released")), *child("released")])
    await storage.commit([end_of_child("released"), ReleaseWorkflow("released", EXECUTOR)])

    assert await sweep(storage, abandoned_before_us=1) == 0
    assert await sweep(storage, abandoned_before_us=2) == 2

    assert await rows_of(storage, "left", "released", "released#1") == set()


async def test_a_request_that_somebody_alive_owns_is_never_abandoned(
    storage: Storage, other: Storage
) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER))])

    assert await sweep(storage, abandoned_before_us=LONG_AGO) == 0

    assert await rows_of(storage, "r") == {"r"}


async def test_the_limit_is_for_both_kinds_together(storage: Storage) -> None:
    await storage.commit([*finished_request("over"), ClaimRequest(request("released"))])
    await storage.commit([ReleaseWorkflow("released", EXECUTOR)])

    assert await sweep(storage, abandoned_before_us=LONG_AGO, limit=1) == 1

    assert await rows_of(storage, "over", "released") == {"released"}


# Requests with workflows that still run


async def test_a_request_stays_while_anything_below_it_is_not_finished(storage: Storage) -> None:
    await storage.commit([*finished_request("r"), *child("r"), *child("r#1"), end_of_child("r")])

    assert await sweep(storage) == 1

    assert await rows_of(storage, "r", "r#1", "r#1#1") == {"r", "r#1", "r#1#1"}
    (run,) = await storage.load_runs(["r"])
    assert len(run.steps) == 1


async def test_it_is_put_off_and_does_not_keep_others_waiting(storage: Storage) -> None:
    busy = [f"r{n}" for n in range(3)]
    for workflow_id in busy:
        await storage.commit([*finished_request(workflow_id, 1), *child(workflow_id)])
    await storage.commit(finished_request("over", 2))

    assert [await sweep(storage, limit=3) for _ in range(3)] == [3, 1, 0]

    later = LONG_AGO + PUT_OFF_US
    assert await rows_of(storage, "over", *busy) == set(busy)
    answer = response("r0", expires_at_us=later, forgotten_at_us=later)
    assert await storage.get_response("r0") == answer
    await storage.commit([end_of_child(workflow_id) for workflow_id in busy])
    assert await sweep(storage, later) == 3
    assert await rows_of(storage, *busy) == set()


async def test_a_tombstone_to_be_keeps_its_end_while_it_is_put_off(storage: Storage) -> None:
    end = LONG_AGO + 2 * PUT_OFF_US
    await storage.commit([*finished_request("r", LONG_AGO, end), *child("r")])

    assert await sweep(storage) == 1

    put_off = response(expires_at_us=LONG_AGO + PUT_OFF_US, forgotten_at_us=end)
    assert await storage.get_response("r") == put_off


async def test_an_abandoned_request_is_put_off_as_well(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request("r")), *child("r")])
    await storage.commit([ReleaseWorkflow("r", EXECUTOR)])

    assert [await sweep(storage, abandoned_before_us=10) for _ in range(2)] == [1, 0]

    assert await rows_of(storage, "r", "r#1") == {"r", "r#1"}
    await storage.commit([end_of_child("r")])
    assert await sweep(storage, abandoned_before_us=10 + PUT_OFF_US) == 0
    assert await sweep(storage, abandoned_before_us=11 + PUT_OFF_US) == 1
    assert await rows_of(storage, "r", "r#1") == set()


# One request


async def test_one_request_is_forgotten_at_once(storage: Storage) -> None:
    await storage.commit([*finished_request("r"), *child("r"), *finished_request("other")])
    await storage.commit([end_of_child("r")])

    assert await storage.forget_request("r", LONG_AGO)

    assert await rows_of(storage, "r", "r#1", "other") == {"other"}


async def test_one_request_stays_while_anything_below_it_is_not_finished(storage: Storage) -> None:
    await storage.commit([*finished_request("r"), *child("r")])

    assert not await storage.forget_request("r", LONG_AGO)

    assert await rows_of(storage, "r", "r#1") == {"r", "r#1"}
    assert (await response_of(storage)).expires_at_us == LONG_AGO + PUT_OFF_US


async def test_one_request_may_leave_a_tombstone(storage: Storage) -> None:
    await storage.commit(finished_request("r", LONG_AGO, 2000))

    assert not await storage.forget_request("r", LONG_AGO)

    assert (await response_of(storage)).is_tombstone
    assert await storage.forget_request("r", 2000)
    assert await rows_of(storage, "r") == set()


@pytest.mark.parametrize(
    "writes",
    [
        [],
        finished_request("r", LONG_AGO + 1),
        [ClaimRequest(request())],
        [ClaimRequest(request()), ReleaseWorkflow("r", EXECUTOR)],
    ],
    ids=["gone", "not expired", "running", "waiting for its retry"],
)
async def test_what_somebody_has_claimed_anew_is_for_the_next_claim_to_tell(
    storage: Storage, writes: list[Write]
) -> None:
    for write in writes:
        await storage.commit([write])
    before = await storage.get_workflow("r")

    assert await storage.forget_request("r", LONG_AGO)

    assert await storage.get_workflow("r") == before


@pytest.mark.parametrize("is_finished", [False, True])
async def test_a_functions_workflow_is_never_forgotten(
    storage: Storage, *, is_finished: bool
) -> None:
    await storage.commit([StartWorkflow(workflow("r")), *([success("r")] if is_finished else [])])

    assert not await storage.forget_request("r", LONG_AGO)

    assert await rows_of(storage, "r") == {"r"}


# At the same time


@pytest.mark.parametrize("number", range(10))
async def test_a_retry_and_a_sweep_at_once_leave_a_whole_request_to_the_retry(
    storage: Storage, other: Storage, number: int
) -> None:
    ids = [f"r{n}" for n in range(20)]
    for i in ids:
        await storage.commit([ClaimRequest(request(i)), *child(i)])
    await storage.commit([end_of_child(i) for i in ids])
    await storage.commit([ReleaseWorkflow(i, EXECUTOR) for i in ids])
    retries = [ClaimRequest(request(i, executor_id=OTHER, updated_at_us=LONG_AGO)) for i in ids]
    split = 2 * number

    early, forgotten, late = await asyncio.gather(
        kinds(other, *retries[:split]),
        sweep(storage, abandoned_before_us=2),
        kinds(other, *retries[split:]),
    )

    outcomes = early + late
    assert set(outcomes) <= {DONE, RESUMED}
    assert outcomes.count(DONE) == forgotten
    runs = {run.workflow.workflow_id: run for run in await storage.load_runs(ids)}
    for i, outcome in zip(ids, outcomes, strict=True):
        assert runs[i].workflow.executor_id == OTHER
        assert len(runs[i].children) == (outcome is RESUMED)


async def test_sweeps_at_once_forget_everything_and_nothing_twice(
    storage: Storage, other: Storage
) -> None:
    ids = [f"r{n}" for n in range(50)]
    for i in ids:
        await storage.commit(finished_request(i))

    counts: list[int] = []

    async def nothing_is_left() -> bool:
        counts.extend(await asyncio.gather(*(sweep(s, limit=7) for s in (storage, other))))
        return not await rows_of(storage, *ids)

    await until(nothing_is_left)

    assert sum(counts) == len(ids)


async def test_of_those_who_forget_one_request_at_once_one_claims_it(
    storage: Storage, other: Storage
) -> None:
    await storage.commit(finished_request())

    async def claim_anew(storage: Storage, executor_id: str) -> OutcomeKind:
        assert await storage.forget_request("r", LONG_AGO)
        (kind,) = await kinds(storage, ClaimRequest(request(executor_id=executor_id)))
        return kind

    outcomes = await asyncio.gather(
        claim_anew(storage, EXECUTOR), claim_anew(other, OTHER), sweep(other)
    )

    assert outcomes.count(DONE) == 1
