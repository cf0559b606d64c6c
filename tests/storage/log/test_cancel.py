"""The contract of ``StepLog`` for cancelling: the first outcome counts, and no write follows it."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from support.databases.storages import WORK, Adapter, OpenStorage, kinds
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import WorkflowState
from asgi_durable.storage.transaction_port import SlotTakenError, StepSlot
from asgi_durable.storage.writes import (
    CancelWorkflow,
    ClaimRequest,
    ClearCrashCount,
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
PENDING, CANCELLED = WorkflowState.PENDING, WorkflowState.CANCELLED
GONE = response(status_code=410, body=None)
FAILED = {"state": WorkflowState.ERROR, "output": None, "error": b"e"}


def cancel(workflow_id: str = "w", executor_id: str = EXECUTOR, at_us: int = 5) -> CancelWorkflow:
    return CancelWorkflow(
        workflow_id=workflow_id, executor_id=executor_id, cancelled_at_us=at_us, response=GONE
    )


async def state_of(storage: Storage, workflow_id: str = "w") -> WorkflowState:
    found = await storage.get_workflow(workflow_id)
    assert found is not None
    return found.state


async def test_anybody_may_cancel_a_workflow(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), record(step())])

    (outcome,) = await other.commit([cancel(executor_id=OTHER)])

    assert (outcome.kind, outcome.cancelled) == (DONE, (("w", EXECUTOR),))
    assert await storage.get_workflow("w") == workflow(state=CANCELLED, updated_at_us=5)
    assert await storage.list_cancelled(["w", "unknown"]) == ["w"]


async def test_what_an_owner_writes_after_it_is_refused(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])
    await other.commit([cancel(executor_id=OTHER)])
    writes: list[Write] = [
        record(step()),
        ClearCrashCount("w", EXECUTOR),
        ReleaseWorkflow("w", EXECUTOR),
        success(),
    ]

    outcomes = await kinds(storage, *writes, ResumeWorkflow("w", EXECUTOR, 9))

    assert outcomes == [FENCED, DONE, DONE, FENCED, CONFLICT]
    (run,) = await storage.load_runs(["w"])
    assert (run.workflow, run.steps) == (workflow(state=CANCELLED, updated_at_us=5), ())


async def test_a_workflow_with_an_outcome_keeps_it(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), success()])
    ended = await storage.get_workflow("w")

    (outcome,) = await other.commit([cancel(executor_id=OTHER)])

    assert (outcome.kind, outcome.existing, outcome.cancelled) == (CONFLICT, ended, ())
    assert await storage.get_workflow("w") == ended
    assert await storage.list_cancelled(["w"]) == []


async def test_what_does_not_exist_conflicts_without_a_row(storage: Storage) -> None:
    (outcome,) = await storage.commit([cancel("unknown")])

    assert (outcome.kind, outcome.existing) == (CONFLICT, None)


async def test_of_an_end_and_a_cancellation_in_a_batch_the_first_counts(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow("a")), StartWorkflow(workflow("b"))])

    outcomes = await kinds(storage, success("a"), cancel("b"), cancel("a"), success("b"))

    assert outcomes == [DONE, DONE, CONFLICT, FENCED]
    assert await state_of(storage, "a") is WorkflowState.SUCCESS
    assert await state_of(storage, "b") is CANCELLED


async def test_of_ends_and_cancellations_at_once_one_counts(
    storage: Storage, other: Storage
) -> None:
    ids = [f"w{number:02}" for number in range(40)]
    await storage.commit([StartWorkflow(workflow(one)) for one in ids])

    ends, cancels, *_ = await asyncio.gather(
        storage.commit([success(one) for one in ids]),
        other.commit([cancel(one, OTHER) for one in reversed(ids)]),
    )

    for one, end, cancellation in zip(ids, ends, reversed(cancels), strict=True):
        state = await state_of(storage, one)
        if state is CANCELLED:
            assert (end.kind, cancellation.kind) == (FENCED, DONE)
        else:
            assert (end.kind, cancellation.kind) == (DONE, CONFLICT)
            assert cancellation.existing is not None
            assert cancellation.existing.state is state


async def test_cancellations_that_cross_do_not_wait_for_each_other_for_ever(
    storage: Storage, other: Storage
) -> None:
    ids = [f"w{number:02}" for number in range(40)]
    await storage.commit([StartWorkflow(workflow(one)) for one in ids])

    outcomes = await asyncio.gather(
        storage.commit([cancel(one) for one in ids]),
        other.commit([cancel(one, OTHER) for one in reversed(ids)]),
    )

    assert {outcome.kind for batch in outcomes for outcome in batch} == {DONE}


async def test_a_workflow_may_start_and_be_cancelled_in_one_batch(storage: Storage) -> None:
    outcomes = await kinds(storage, StartWorkflow(workflow()), record(step()), cancel(), cancel())

    assert outcomes == [DONE] * 4
    (run,) = await storage.load_runs(["w"])
    assert (run.workflow.state, run.steps) == (CANCELLED, (step(),))


async def test_a_cancellation_that_is_repeated_is_done_and_changes_nothing(
    storage: Storage, other: Storage
) -> None:
    await storage.commit([ClaimRequest(request())])
    (first,) = await storage.commit([cancel("r")])
    (again,) = await storage.commit([cancel("r")])
    (elsewhere,) = await other.commit([cancel("r", OTHER, at_us=99)])

    assert first.cancelled == again.cancelled == elsewhere.cancelled == (("r", EXECUTOR),)
    assert {first.kind, again.kind, elsewhere.kind} == {DONE}
    assert await storage.get_workflow("r") == request(state=CANCELLED, updated_at_us=5)
    assert await storage.get_response("r") == GONE


async def test_what_was_called_is_cancelled_and_what_was_started_goes_on(storage: Storage) -> None:
    called = {"awaited": True}
    family = [
        workflow("w"),
        workflow("w#0", parent_id="w", parent_step=0, **called),
        workflow("w#1", parent_id="w", parent_step=1, awaited=False),
        workflow("w#2", parent_id="w", parent_step=2, **called),
        workflow("w#0#0", parent_id="w#0", parent_step=0, **called),
        workflow("w#1#0", parent_id="w#1", parent_step=0, **called),
        workflow("other"),
    ]
    await storage.commit([StartWorkflow(one) for one in family])
    await storage.commit([success("w#2")])

    (outcome,) = await storage.commit([cancel()])

    cancelled = {"w", "w#0", "w#0#0"}
    assert set(outcome.cancelled) == {(one, EXECUTOR) for one in cancelled}
    ids = [one.workflow_id for one in family]
    assert set(await storage.list_cancelled(ids)) == cancelled
    assert await state_of(storage, "w#2") is WorkflowState.SUCCESS


async def test_a_repetition_cancels_what_was_called_meanwhile(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), cancel()])
    late = workflow("w#0", parent_id="w", parent_step=0)

    outcomes = await storage.commit([StartWorkflow(late), cancel()])

    assert set(outcomes[1].cancelled) == {("w", EXECUTOR), ("w#0", EXECUTOR)}


async def test_several_are_cancelled_in_one_batch(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow(f"w{n}")) for n in range(5)])
    await storage.commit([success("w3")])

    outcomes = await storage.commit([cancel(f"w{n}") for n in (4, 0, 3, 9, 1)])

    assert [outcome.kind for outcome in outcomes] == [DONE, DONE, CONFLICT, CONFLICT, DONE]
    assert [outcome.cancelled for outcome in outcomes] == [
        (("w4", EXECUTOR),),
        (("w0", EXECUTOR),),
        (),
        (),
        (("w1", EXECUTOR),),
    ]


async def test_a_dead_executor_cancels_nothing(storage: Storage, other: Storage) -> None:
    await other.commit([StartWorkflow(workflow(executor_id=OTHER))])
    await storage.retire(EXECUTOR)

    assert await kinds(storage, cancel()) == [FENCED]
    assert await state_of(other) is PENDING


async def test_what_no_database_can_hold_is_rejected(storage: Storage) -> None:
    outcomes = await kinds(storage, StartWorkflow(workflow()), cancel("w\ud800"), record(step()))

    assert outcomes == [DONE, REJECTED, DONE]


async def test_a_cancelled_workflow_is_taken_over_by_nobody(
    storage: Storage, other: Storage
) -> None:
    await other.commit([StartWorkflow(workflow(executor_id=OTHER)), cancel(executor_id=OTHER)])
    await other.retire(OTHER)

    for suspects in (False, True):
        taken = await storage.take_over(EXECUTOR, runnable=WORK, limit=9, suspects=suspects)
        assert taken == []
    assert await storage.list_pending(OTHER, after="", limit=9) == []


async def test_a_cancelled_request_is_claimed_by_nobody(storage: Storage, other: Storage) -> None:
    await storage.commit([ClaimRequest(request()), ReleaseWorkflow("r", EXECUTOR), cancel("r")])

    (same,) = await other.commit([ClaimRequest(request(executor_id=OTHER))])
    (reused,) = await other.commit([ClaimRequest(request(executor_id=OTHER, fingerprint="v1:b"))])
    (forgotten,) = await storage.commit([ForgetRequest("r", EXECUTOR)])

    assert (same.kind, same.response) == (CONFLICT, GONE)
    assert same.existing is not None
    assert same.existing.state is CANCELLED
    assert (reused.kind, reused.response) == (CONFLICT, None)
    assert forgotten.kind is DONE
    assert await state_of(storage, "r") is CANCELLED


async def test_a_cancelled_request_expires_as_one_that_is_answered(storage: Storage) -> None:
    await storage.commit([ClaimRequest(request()), record(step("r"))])
    await storage.commit([cancel("r")])
    early, late = GONE.expires_at_us - 1, GONE.expires_at_us

    assert await storage.forget_expired(early, abandoned_before_us=0, limit=9) == 0
    assert await storage.forget_expired(late, abandoned_before_us=0, limit=9) == 1

    assert await storage.load_runs(["r"]) == []
    assert await storage.get_response("r") is None


async def test_no_answer_is_kept_for_a_functions_workflow(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow("r")), cancel("r")])

    assert await storage.get_response("r") is None


async def test_a_retry_leaves_a_cancelled_child_and_what_was_before_it(storage: Storage) -> None:
    child = workflow("r#1", parent_id="r", parent_step=1)
    failed = step("r", output=None, error=b"caught"), step("r", 2, output=None, error=b"e")
    await storage.commit([ClaimRequest(request()), record(failed[0]), StartWorkflow(child)])
    await storage.commit([cancel("r#1"), record(failed[1])])

    await storage.commit([ReleaseWorkflow("r", EXECUTOR)])
    await storage.commit([ClaimRequest(request())])

    (run,) = await storage.load_runs(["r"])
    assert run.steps == failed[:1]
    assert [one.state for one in run.children] == [CANCELLED]


# Transactions


SLOT = StepSlot(workflow_id="w", step_number=0, executor_id=EXECUTOR)


async def effects(storage: Storage) -> int:
    async with storage.transaction(None) as transaction:
        result = await transaction.session.execute(sa.text("SELECT count(*) FROM effects"))
        return result.scalar_one()


async def create_effects(storage: Storage) -> None:
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (name TEXT)"))


@pytest.mark.parametrize("isolation_level", [None, "SERIALIZABLE"])
async def test_a_transaction_that_is_first_stays_and_is_waited_for(
    storage: Storage, other: Storage, isolation_level: str | None
) -> None:
    await create_effects(storage)
    await storage.commit([StartWorkflow(workflow())])
    async with storage.transaction(SLOT, isolation_level=isolation_level) as transaction:
        await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
        await transaction.record(step())
        cancelling = asyncio.ensure_future(other.commit([cancel(executor_id=OTHER)]))
        done, _ = await asyncio.wait([cancelling], timeout=0.2)
        assert not done

    (outcome,) = await cancelling
    assert outcome.kind is DONE
    (run,) = await storage.load_runs(["w"])
    assert (run.workflow.state, run.steps) == (CANCELLED, (step(),))
    assert await effects(storage) == 1


@pytest.mark.parametrize("isolation_level", [None, "SERIALIZABLE"])
async def test_a_transaction_that_comes_late_commits_nothing(
    storage: Storage, open_storage: OpenStorage, new_storage: Adapter, isolation_level: str | None
) -> None:
    await create_effects(storage)
    await storage.commit([StartWorkflow(workflow())])
    if new_storage.one_writer:
        # It holds the database until its end, so it commits first or has not begun.
        await storage.commit([cancel()])
    with pytest.raises(Exception) as raised:  # noqa: PT011  the database decides which one
        async with storage.transaction(SLOT, isolation_level=isolation_level) as transaction:
            assert not new_storage.one_writer
            await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
            other = await open_storage(OTHER)
            assert await kinds(other, cancel(executor_id=OTHER)) == [DONE]
            await transaction.record(step())

    assert isolation_level is not None or raised.type is SlotTakenError
    with pytest.raises(SlotTakenError):
        async with storage.transaction(SLOT):
            pytest.fail("the application's code ran")
    assert await effects(storage) == 0
    assert await state_of(storage) is CANCELLED
