"""Writes: the changes that the engine asks a storage to commit, and their outcomes.

Beside the outcomes that its class names, every write is FENCED if its executor is dead. Every
write may be repeated: if the result of a commit is lost with the connection, the engine commits
the same batch again. The storage finds the rows of the first time, and the write is DONE again.
"""

from __future__ import annotations

from enum import Enum, auto

from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.storage.records import (
    ChunkRecord,
    ResponseRecord,
    StepRecord,
    WorkflowRecord,
    WorkflowState,
)

__all__ = [
    "DONE",
    "FENCED",
    "MAX_INLINE_BYTES",
    "CancelWorkflow",
    "ClaimRequest",
    "ClearCrashCount",
    "CompleteStep",
    "FinishWorkflow",
    "ForgetRequest",
    "Outcome",
    "OutcomeKind",
    "RecordChunk",
    "RecordStep",
    "ReleaseWorkflow",
    "ResumeWorkflow",
    "SetFingerprint",
    "SetLastSpan",
    "StartWorkflow",
    "Write",
    "executor_of",
    "is_same_end",
    "is_same_start",
    "outcome_of_refused_step",
    "workflow_id_of",
]

# Up to this length the outcome of a claim has the body of a stored response; a longer one, which
# would make the other writes of the batch wait, is read on its own.
MAX_INLINE_BYTES = 64 * 1024


@fast_dataclass()
class StartWorkflow:
    """Insert a workflow. CONFLICT, with the existing row, if its id is taken."""

    workflow: WorkflowRecord


@fast_dataclass()
class ClaimRequest:
    """Insert a request's workflow, or take over one that no living executor owns.

    - DONE: the row is new.
    - RESUMED, with the row as it was: it waited for its retry. Its trailing failures are dropped,
      and so are those of the children that it called; these children belong to this executor now.
      If the row's fingerprint was a placeholder, this write's fingerprint replaces it.
    - CONFLICT, with the row: it is finished, belongs to another living executor, has another
      fingerprint, or waits for its retry and this one comes too soon: *workflow* has an
      ``updated_at_us`` before the row's ``retry_at_us``. If the row is finished and has the same
      fingerprint, the outcome has the response too, unless its body is longer than
      ``MAX_INLINE_BYTES``.
    """

    workflow: WorkflowRecord

    def comes_too_soon_for(self, existing: WorkflowRecord) -> bool:
        """Return True if this claim comes before the time for which the row waits."""
        return (
            existing.retry_at_us is not None and self.workflow.updated_at_us < existing.retry_at_us
        )


@fast_dataclass()
class SetFingerprint:
    """Replace the placeholder for the fingerprint of this executor's request.

    FENCED if the row has neither *pending* nor *fingerprint*: it belongs to another attempt.
    """

    workflow_id: str
    executor_id: str
    pending: str
    fingerprint: str


@fast_dataclass()
class SetLastSpan:
    """Store the span of the latest run of a workflow of this executor's; always DONE.

    For a first run the workflow is inserted with it.
    """

    workflow_id: str
    executor_id: str
    last_span: str


@fast_dataclass()
class ResumeWorkflow:
    """Take over a workflow that no other living executor owns, and count one more run of it.

    DONE if it is free or this executor's. CONFLICT, with the row, if it is finished or
    belongs to another living executor. CONFLICT without a row if there is no such workflow.
    """

    workflow_id: str
    executor_id: str
    resumed_at_us: int


@fast_dataclass()
class RecordStep:
    """Insert a step that is finished, or has begun. CONFLICT if the number has another record."""

    step: StepRecord
    executor_id: str


@fast_dataclass()
class CompleteStep:
    """Store the outcome of a step that has begun. CONFLICT if it has another outcome."""

    step: StepRecord
    executor_id: str


@fast_dataclass()
class RecordChunk:
    """Insert a chunk, and delete those that it cuts. CONFLICT if its offset has another chunk."""

    chunk: ChunkRecord
    executor_id: str

    @property
    def cuts(self) -> bool:
        """True if there may be chunks to delete."""
        return self.chunk.cut_to is not None and self.chunk.end_offset > 0


@fast_dataclass(kw_only=True)
class FinishWorkflow:
    """Store the outcome of a workflow, the response to a request, and start its followers.

    FENCED if the workflow is not this executor's any more, or has another outcome.

    Invariant: the workflows of *starts* are inserted if this write is DONE, and only then. If one
    of their ids is taken, that row is the same workflow, started before: their ids are made from
    this workflow's id.

    Attributes:
        output: The encoded result, with the state SUCCESS; ``None`` for a request.
        error: The encoded exception, ``None`` with the state SUCCESS.
        finished_at_us: Microseconds since 1970, UTC, by the writer's clock.
        starts: Workflows to insert, children of this one.
    """

    workflow_id: str
    executor_id: str
    state: WorkflowState
    output: bytes | None
    error: bytes | None
    finished_at_us: int
    response: ResponseRecord | None = None
    starts: tuple[WorkflowRecord, ...] = ()


@fast_dataclass()
class ClearCrashCount:
    """Clear the crash count of a workflow of this executor's; always DONE.

    The workflow was run alone for a while, and its process is still alive. The next crash counts
    as the first one.
    """

    workflow_id: str
    executor_id: str


@fast_dataclass()
class ReleaseWorkflow:
    """Give up a workflow of this executor's, so that any executor may take it; always DONE.

    Attributes:
        retry_at_us: The time from which a request may be claimed again, ``None`` for at once;
            microseconds since 1970, UTC, by the writer's clock.
    """

    workflow_id: str
    executor_id: str
    retry_at_us: int | None = None


@fast_dataclass()
class ForgetRequest:
    """Delete this executor's request unless it has a recorded step or child; always DONE."""

    workflow_id: str
    executor_id: str


@fast_dataclass(kw_only=True)
class CancelWorkflow:
    """Cancel a workflow that is not finished, also one that another executor owns.

    Children that it called are cancelled at any depth; those that it only started are not.

    DONE, with the ids of all that are cancelled by now, if it is cancelled, by this write or an
    earlier one. CONFLICT, with the row, if it has another outcome; CONFLICT without a row if
    there is no such workflow. Its owner's later writes for it are FENCED. If a transaction or a
    ``FinishWorkflow`` commits at the same time, the first of the two commits counts.

    Attributes:
        executor_id: The executor that cancels it; not the owner.
        cancelled_at_us: Microseconds since 1970, UTC, by the writer's clock.
        response: Stored for a request, so that it expires as one with a response does.
    """

    workflow_id: str
    executor_id: str
    cancelled_at_us: int
    response: ResponseRecord | None = None


Write = (
    StartWorkflow
    | ClaimRequest
    | SetFingerprint
    | SetLastSpan
    | ResumeWorkflow
    | RecordStep
    | CompleteStep
    | RecordChunk
    | FinishWorkflow
    | ClearCrashCount
    | ReleaseWorkflow
    | ForgetRequest
    | CancelWorkflow
)


def executor_of(write: Write) -> str | None:
    """Return the executor on whose behalf a write is made."""
    if isinstance(write, (StartWorkflow, ClaimRequest)):
        return write.workflow.executor_id
    return write.executor_id


def workflow_id_of(write: Write) -> str:
    """Return the id of the workflow that a write changes."""
    if isinstance(write, (StartWorkflow, ClaimRequest)):
        return write.workflow.workflow_id
    if isinstance(write, RecordChunk):
        return write.chunk.workflow_id
    if isinstance(write, (RecordStep, CompleteStep)):
        return write.step.workflow_id
    return write.workflow_id


def is_same_start(existing: WorkflowRecord, wanted: WorkflowRecord) -> bool:
    """Return True if the existing row is this very start, whose result was lost.

    Two starts of one executor never have the same microsecond.
    """
    return (existing.executor_id, existing.created_at_us, existing.input) == (
        wanted.executor_id,
        wanted.created_at_us,
        wanted.input,
    )


def is_same_end(existing: WorkflowRecord, end: FinishWorkflow) -> bool:
    """Return True if the existing row has this very end, whose result was lost."""
    return (existing.state, existing.output, existing.error, existing.updated_at_us) == (
        end.state,
        end.output,
        end.error,
        end.finished_at_us,
    )


def outcome_of_refused_step(
    write: RecordStep | CompleteStep, existing: StepRecord | None
) -> Outcome:
    """Return the outcome of a write that changed no row.

    Args:
        write: The write.
        existing: The record with the same number, ``None`` if there is none.
    """
    # The same record: this very write was committed before, and its result was lost.
    if existing == write.step:
        return DONE
    # A record or an outcome is in the way. If none is, the executor does not own the workflow.
    is_in_the_way = existing is not None and (isinstance(write, RecordStep) or existing.is_finished)
    return Outcome(OutcomeKind.CONFLICT) if is_in_the_way else FENCED


class OutcomeKind(Enum):
    """The kinds of outcomes of a write."""

    DONE = auto()
    """The write is durable."""
    RESUMED = auto()
    """A request that waited for its retry belongs to this executor now; durable."""
    CONFLICT = auto()
    """Another row is in the way; nothing was written."""
    FENCED = auto()
    """The executor is dead, or does not own the workflow any more; nothing was written."""
    REJECTED = auto()
    """The database cannot hold the values; nothing was written, and no retry can succeed."""
    UNAVAILABLE = auto()
    """The database could not be used until the storage retry timeout was over.

    The engine makes this outcome; an adapter raises ``StorageUnavailableError``.
    """


@fast_dataclass()
class Outcome:
    """The outcome of a write.

    Attributes:
        existing: The row in the way of a CONFLICT; with RESUMED, the row as it was before.
        response: The stored response of that row; only with the CONFLICT of a ``ClaimRequest``.
        error: The database's error; only with REJECTED and UNAVAILABLE.
        cancelled: The ids of cancelled workflows, each with the executor that owned it; only
            with the DONE of a ``CancelWorkflow``.
    """

    kind: OutcomeKind
    existing: WorkflowRecord | None = None
    response: ResponseRecord | None = None
    error: Exception | None = None
    cancelled: tuple[tuple[str, str | None], ...] = ()


DONE = Outcome(OutcomeKind.DONE)
FENCED = Outcome(OutcomeKind.FENCED)
