"""The contract of ``StepLog`` for requests: claims, retries and responses."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.databases.storages import kinds
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import SLEEP, WorkflowState
from asgi_durable.storage.writes import (
    MAX_INLINE_BYTES,
    ClaimRequest,
    ForgetRequest,
    OutcomeKind,
    ReleaseWorkflow,
    SetFingerprint,
    StartWorkflow,
)

pytestmark = pytest.mark.anyio

DONE, CONFLICT = OutcomeKind.DONE, OutcomeKind.CONFLICT
FENCED, RESUMED = OutcomeKind.FENCED, OutcomeKind.RESUMED
ENDED_IN_ERROR = {"state": WorkflowState.ERROR, "output": None, "error": b"e"}


async def test_a_request_is_claimed_once(storage: Storage, other: Storage) -> None:
    first = request(executor_id=OTHER, created_at_us=9)

    assert await kinds(other, ClaimRequest(first)) == [DONE]
    (outcome,) = await storage.commit([ClaimRequest(request())])

    assert outcome.kind is CONFLICT
    assert outcome.existing == first


async def test_of_claims_at_once_one_is_done(storage: Storage, other: Storage) -> None:
    theirs = [request(executor_id=OTHER, created_at_us=n) for n in range(5)]

    (mine,), *rest = await asyncio.gather(
        storage.commit([ClaimRequest(request())]),
        *(other.commit([ClaimRequest(one)]) for one in theirs),
    )

    found = await storage.get_workflow("r")
    outcomes = [mine, *(outcome for (outcome,) in rest)]
    assert sum(outcome.kind is DONE for outcome in outcomes) == 1
    assert found is not None
    assert mine.kind is (DONE if found.executor_id == EXECUTOR else CONFLICT)


async def test_a_request_that_was_released_is_resumed_by_its_retry(
    storage: Storage, other: Storage
) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER)), ReleaseWorkflow("r", OTHER)])

    retry = request(request_id="r2", updated_at_us=7)
    assert await kinds(storage, ClaimRequest(retry)) == [RESUMED]

    found = await storage.get_workflow("r")
    assert found is not None
    assert (found.executor_id, found.attempts, found.request_id) == (EXECUTOR, 2, "r2")


async def test_a_request_of_an_executor_that_left_is_resumed_by_its_retry(
    storage: Storage, other: Storage
) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER)), record(step("r"), OTHER)])
    await other.retire(OTHER)

    assert await kinds(storage, ClaimRequest(request())) == [RESUMED]

    (run,) = await storage.load_runs(["r"])
    assert (run.workflow.executor_id, len(run.steps)) == (EXECUTOR, 1)


async def test_a_retry_is_not_made_before_its_time(storage: Storage, other: Storage) -> None:
    await storage.commit([ClaimRequest(request()), ReleaseWorkflow("r", EXECUTOR, 100)])
    waiting = request(executor_id=None, retry_at_us=100)

    for early in (0, 99):
        claim = ClaimRequest(request(executor_id=OTHER, updated_at_us=early))
        (outcome,) = await other.commit([claim])
        assert (outcome.kind, outcome.existing, outcome.response) == (CONFLICT, waiting, None)
    reused = request(executor_id=OTHER, fingerprint="v1:bb", updated_at_us=100)
    assert await kinds(other, ClaimRequest(reused)) == [CONFLICT]
    assert await storage.get_workflow("r") == waiting

    late = request(executor_id=OTHER, updated_at_us=100)
    assert await kinds(other, ClaimRequest(late)) == [RESUMED]
    assert await storage.get_workflow("r") == request(
        executor_id=OTHER, attempts=2, updated_at_us=100
    )


async def test_each_of_several_waits_for_its_own_time(storage: Storage, other: Storage) -> None:
    times = {"a": None, "b": 100, "c": 50}
    await storage.commit([ClaimRequest(request(one)) for one in times])
    await storage.commit([ReleaseWorkflow(one, EXECUTOR, at) for one, at in times.items()])

    claims = [ClaimRequest(request(one, executor_id=OTHER, updated_at_us=60)) for one in times]
    assert await kinds(other, *claims) == [RESUMED, CONFLICT, RESUMED]


async def test_a_later_release_without_a_time_lets_the_retry_be_made_at_once(
    storage: Storage, other: Storage
) -> None:
    await storage.commit([ClaimRequest(request()), ReleaseWorkflow("r", EXECUTOR, 100)])
    await storage.commit([ClaimRequest(request(updated_at_us=100))])
    await storage.commit([ReleaseWorkflow("r", EXECUTOR)])

    early = request(executor_id=OTHER, updated_at_us=5)
    assert await kinds(other, ClaimRequest(early)) == [RESUMED]


async def test_a_retry_after_a_death_waits_for_nothing(storage: Storage, other: Storage) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER))])
    await other.commit([ReleaseWorkflow("r", OTHER, 100)])
    await other.commit([ClaimRequest(request(executor_id=OTHER, updated_at_us=100))])
    await other.retire(OTHER)

    assert await kinds(storage, ClaimRequest(request(updated_at_us=5))) == [RESUMED]


async def test_a_retry_with_another_fingerprint_conflicts(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request()), ReleaseWorkflow("r", EXECUTOR)])

    (outcome,) = await storage.commit([ClaimRequest(request(fingerprint="v1:bb"))])

    assert outcome.kind is CONFLICT
    assert outcome.existing == request(executor_id=None)


async def test_a_request_does_not_take_a_functions_workflow(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow("r"))])

    assert await kinds(storage, ClaimRequest(request())) == [CONFLICT]


async def test_an_answer_is_kept_with_the_end_of_its_request(storage: Storage) -> None:
    end = success("r", output=None, response=response())
    assert await kinds(storage, ClaimRequest(request()), end) == [DONE, DONE]

    assert await storage.get_response("r") == response()
    (outcome,) = await storage.commit([ClaimRequest(request())])
    assert outcome.kind is CONFLICT
    assert outcome.existing is not None
    assert outcome.existing.is_final
    assert outcome.response == response()


@pytest.mark.parametrize(
    ("size", "is_told"), [(MAX_INLINE_BYTES, True), (MAX_INLINE_BYTES + 1, False)]
)
async def test_a_long_answer_is_not_told_with_the_row(
    storage: Storage, size: int, *, is_told: bool
) -> None:
    answer = response(body=b"x" * size)
    await storage.commit([ClaimRequest(request()), success("r", output=None, response=answer)])

    (outcome,) = await storage.commit([ClaimRequest(request())])

    assert outcome.response == (answer if is_told else None)
    assert await storage.get_response("r") == answer


async def test_an_answer_is_told_to_no_other_request(storage: Storage) -> None:
    end = success("r", output=None, response=response())
    await storage.commit([ClaimRequest(request()), end])

    (outcome,) = await storage.commit([ClaimRequest(request(fingerprint="v1:bb"))])

    assert (outcome.kind, outcome.response) == (CONFLICT, None)


async def test_an_answer_without_its_body_is_kept(storage: Storage) -> None:
    answer = response(body=None, headers=b'[["a","b"]]', status_code=599)

    await storage.commit([ClaimRequest(request()), success("r", output=None, response=answer)])

    assert await storage.get_response("r") == answer


async def test_a_fenced_end_keeps_no_answer(storage: Storage, other: Storage) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER))])

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

    assert await kinds(storage, ForgetRequest("r", EXECUTOR)) == [DONE]

    assert await storage.get_workflow("r") is not None


async def test_a_request_is_forgotten_by_its_executor_alone(
    storage: Storage, other: Storage
) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER))])

    assert await kinds(storage, ForgetRequest("r", EXECUTOR)) == [DONE]

    assert await storage.get_workflow("r") is not None


async def resumed_log(storage: Storage, workflow_id: str) -> list[tuple[int, str]]:
    (run,) = await storage.load_runs([workflow_id])
    entries = [(s.step_number, "error" if s.error else "output") for s in run.steps]
    entries += [(c.parent_step or 0, c.state.value) for c in run.children]
    return sorted(entries)


async def test_a_retry_drops_the_failures_that_no_success_follows(storage: Storage) -> None:
    await storage.commit(
        [
            ClaimRequest(request()),
            record(step("r", 0, output=None, error=b"caught")),
            record(step("r", 1)),
            record(step("r", 2, output=None, error=b"e")),
            record(step("r", 3, output=None, error=b"e")),
        ]
    )

    assert await kinds(storage, ClaimRequest(request())) == [RESUMED]

    assert await resumed_log(storage, "r") == [(0, "error"), (1, "output")]


async def test_a_called_child_that_failed_is_resumed_with_its_own_failures_dropped(
    storage: Storage, other: Storage
) -> None:
    await other.commit(
        [
            ClaimRequest(request(executor_id=OTHER)),
            record(step("r", 0), OTHER),
            StartWorkflow(workflow("r#1", parent_id="r", parent_step=1, executor_id=OTHER)),
            record(step("r#1", 0), OTHER),
            record(step("r#1", 1, output=None, error=b"e"), OTHER),
            success("r#1", executor_id=OTHER, **ENDED_IN_ERROR),
            ReleaseWorkflow("r", OTHER),
        ]
    )

    assert await kinds(storage, ClaimRequest(request())) == [RESUMED]

    assert await resumed_log(storage, "r") == [(0, "output"), (1, "PENDING")]
    assert await resumed_log(storage, "r#1") == [(0, "output")]
    assert await kinds(storage, record(step("r#1", 1)), success("r#1")) == [DONE, DONE]


async def test_failures_of_called_children_are_dropped_all_the_way_down(storage: Storage) -> None:
    child = workflow("r#0", parent_id="r", parent_step=0)
    grandchild = workflow("r#0#0", parent_id="r#0", parent_step=0)
    await storage.commit(
        [
            ClaimRequest(request()),
            StartWorkflow(child),
            StartWorkflow(grandchild),
            record(step("r#0#0", 0, output=None, error=b"e")),
            success("r#0#0", **ENDED_IN_ERROR),
            success("r#0", **ENDED_IN_ERROR),
        ]
    )

    await storage.commit([ClaimRequest(request())])

    assert await resumed_log(storage, "r") == [(0, "PENDING")]
    assert await resumed_log(storage, "r#0") == [(0, "PENDING")]
    assert await resumed_log(storage, "r#0#0") == []


async def test_a_failed_child_that_a_success_follows_keeps_its_fate(storage: Storage) -> None:
    child = workflow("r#0", parent_id="r", parent_step=0)
    await storage.commit(
        [
            ClaimRequest(request()),
            StartWorkflow(child),
            success("r#0", **ENDED_IN_ERROR),
            record(step("r", 1)),
        ]
    )

    await storage.commit([ClaimRequest(request())])

    assert await resumed_log(storage, "r") == [(0, "ERROR"), (1, "output")]


async def test_a_started_child_that_failed_keeps_its_fate(storage: Storage) -> None:
    child = workflow("r#0", parent_id="r", parent_step=0, awaited=False)
    await storage.commit(
        [ClaimRequest(request()), StartWorkflow(child), success("r#0", **ENDED_IN_ERROR)]
    )

    await storage.commit([ClaimRequest(request())])

    assert await resumed_log(storage, "r") == [(0, "ERROR")]


async def test_retries_of_several_requests_fit_into_one_batch(storage: Storage) -> None:
    failed = [record(step(f"r{n}", 0, output=None, error=b"e")) for n in range(20)]
    claims = [ClaimRequest(request(f"r{n}")) for n in range(20)]
    await storage.commit([*claims, *failed])

    assert await kinds(storage, *claims, ClaimRequest(request("new"))) == [RESUMED] * 20 + [DONE]

    runs = await storage.load_runs([f"r{n}" for n in range(20)])
    assert [run.steps for run in runs] == [()] * 20


async def test_it_can_be_told_how_far_a_request_is(storage: Storage, other: Storage) -> None:
    assert await storage.get_progress("r") is None
    await other.commit([ClaimRequest(request(executor_id=OTHER)), record(step("r"), OTHER)])
    child = workflow("r#1", parent_id="r", parent_step=1, executor_id=OTHER)
    await other.commit([StartWorkflow(child)])

    running = await storage.get_progress("r")
    await other.commit([ReleaseWorkflow("r", OTHER)])
    released = await storage.get_progress("r")

    assert running is not None
    assert released is not None
    assert (running.workflow.workflow_id, running.is_owned, running.entries) == ("r", True, 2)
    assert (released.is_owned, released.entries) == (False, 2)


async def test_it_can_be_told_until_when_a_workflow_sleeps(storage: Storage) -> None:
    async def sleeps_until() -> int | None:
        progress = await storage.get_progress("w")
        assert progress is not None
        return progress.sleeps_until_us

    sleeps = [replace(step(number=number), name=SLEEP) for number in range(3)]
    await storage.commit([StartWorkflow(workflow())])
    assert await sleeps_until() is None
    # A step before it has no outcome.
    await storage.commit([record(replace(sleeps[1], finished_at_us=11))])
    assert await sleeps_until() is None

    await storage.commit([record(step())])
    assert await sleeps_until() == 11

    await storage.commit([record(replace(sleeps[2], finished_at_us=2**50))])
    assert await sleeps_until() == 2**50
    child = workflow("w#3", parent_id="w", parent_step=3)
    await storage.commit([StartWorkflow(child)])
    assert await sleeps_until() is None


async def test_a_request_of_an_executor_that_left_is_nobodys(
    storage: Storage, other: Storage
) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER))])
    await other.retire(OTHER)

    progress = await storage.get_progress("r")

    assert progress is not None
    assert not progress.is_owned


# Placeholders for fingerprints that are not known when a request is claimed

PENDING, LATER = "pending:1", "pending:2"
SET = SetFingerprint("r", EXECUTOR, PENDING, "v1:aa")


async def fingerprint_of(storage: Storage, workflow_id: str = "r") -> str | None:
    found = await storage.get_workflow(workflow_id)
    return found.fingerprint if found is not None else None


async def test_a_fingerprint_is_set_later(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request(fingerprint=PENDING))])

    # Again, as if the first result had been lost.
    for _ in range(2):
        assert await kinds(storage, SET) == [DONE]
        assert await fingerprint_of(storage) == "v1:aa"


async def test_a_fingerprint_is_set_before_the_end_of_its_request(storage: Storage) -> None:
    end = success("r", output=None, response=response())
    writes = [SET, record(step("r")), end]
    await storage.commit([ClaimRequest(request(fingerprint=PENDING))])

    for _ in range(2):
        assert await kinds(storage, *writes) == [DONE] * 3
    assert await fingerprint_of(storage) == "v1:aa"
    (outcome,) = await storage.commit([ClaimRequest(request())])
    assert outcome.response == response()


async def test_a_whole_request_with_a_fingerprint_fits_into_one_batch(storage: Storage) -> None:
    claim = ClaimRequest(request(fingerprint=PENDING))
    end = success("r", output=None, response=response())

    assert await kinds(storage, claim, record(step("r")), SET, end) == [DONE] * 4
    assert await fingerprint_of(storage) == "v1:aa"


async def test_fingerprints_of_many_are_told_apart(storage: Storage) -> None:
    claims = [ClaimRequest(request(f"r{n}", fingerprint=PENDING)) for n in range(3)]
    await storage.commit(claims)

    outcomes = await kinds(
        storage,
        SetFingerprint("r2", EXECUTOR, PENDING, "v1:c"),
        SetFingerprint("r1", EXECUTOR, LATER, "v1:b"),
        SetFingerprint("r0", EXECUTOR, PENDING, "v1:a"),
        SetFingerprint("unknown", EXECUTOR, PENDING, "v1:a"),
    )

    assert outcomes == [DONE, FENCED, DONE, FENCED]
    found = [await fingerprint_of(storage, f"r{n}") for n in range(3)]
    assert found == ["v1:a", PENDING, "v1:c"]


@pytest.mark.parametrize("fingerprint", [LATER, "v1:bb"])
async def test_a_retry_takes_the_place_of_a_fingerprint_that_was_never_known(
    storage: Storage, other: Storage, fingerprint: str
) -> None:
    first = ClaimRequest(request(executor_id=OTHER, fingerprint=PENDING))
    await other.commit([first, ReleaseWorkflow("r", OTHER)])

    assert await kinds(storage, ClaimRequest(request(fingerprint=fingerprint))) == [RESUMED]

    assert await fingerprint_of(storage) == fingerprint
    # The former owner is late.
    late = SetFingerprint("r", OTHER, PENDING, "v1:aa")
    assert await kinds(other, late) == [FENCED]
    assert await kinds(storage, SET) == [FENCED]


async def test_who_does_not_know_its_fingerprint_resumes_nothing_that_has_one(
    storage: Storage,
) -> None:
    await storage.commit([ClaimRequest(request()), ReleaseWorkflow("r", EXECUTOR)])

    (outcome,) = await storage.commit([ClaimRequest(request(fingerprint=PENDING))])

    assert (outcome.kind, outcome.existing) == (CONFLICT, request(executor_id=None))


async def test_a_running_request_without_a_fingerprint_is_not_taken(
    storage: Storage, other: Storage
) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER, fingerprint=PENDING))])

    assert await kinds(storage, ClaimRequest(request())) == [CONFLICT]
    assert await kinds(storage, ReleaseWorkflow("r", EXECUTOR), SET) == [DONE, FENCED]
    assert await fingerprint_of(storage) == PENDING


async def test_the_dead_set_no_fingerprint(storage: Storage, other: Storage) -> None:
    await other.commit([ClaimRequest(request(executor_id=OTHER, fingerprint=PENDING))])
    await other.retire(OTHER)

    assert await kinds(other, SetFingerprint("r", OTHER, PENDING, "v1:aa")) == [FENCED]
