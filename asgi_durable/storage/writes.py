"""What a run asks the storage to make durable, and what it is told of each.

Whatever a write's own outcomes are, it is FENCED where its executor is dead. Every write may
be repeated: a commit whose answer got lost is tried again, and the second time finds its own
rows and is DONE once more.
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
    "MAX_TOLD_BYTES",
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
    "of_refused_step",
    "workflow_id_of",
]

# A claim is told a short answer at once; a long one would keep other writes waiting.
MAX_TOLD_BYTES = 64 * 1024


@fast_dataclass()
class StartWorkflow:
    """Insert a workflow. CONFLICT, with the row that is there, if its id is taken."""

    workflow: WorkflowRecord


@fast_dataclass()
class ClaimRequest:
    """Insert a request's workflow, or take over one that nobody runs.

    DONE for a new row. RESUMED for a row that waited for its retry: its trailing failures
    are dropped, those of the children it called included, and those children are this
    executor's; where its fingerprint is not known, this one's takes its place. CONFLICT, with
    the row, if the row is finished, belongs to another living executor or has another
    fingerprint; with the answer as well if it is finished, has the same one, and the answer's
    body is not longer than ``MAX_TOLD_BYTES``. CONFLICT as
    well if the row waits for its retry, and this one comes too soon: its ``updated_at_us`` is
    before the row's ``retry_at_us``, which the row has as long as it waits.
    """

    workflow: WorkflowRecord

    def comes_too_soon_for(self, existing: WorkflowRecord) -> bool:
        """Tell whether a row that waits for its retry has to wait longer."""
        return (
            existing.retry_at_us is not None and self.workflow.updated_at_us < existing.retry_at_us
        )


@fast_dataclass()
class SetFingerprint:
    """Put the fingerprint of this executor's request in the place of what stands for it.

    FENCED if something else is there: another try of the request.
    """

    workflow_id: str
    executor_id: str
    pending: str
    fingerprint: str


@fast_dataclass()
class SetLastSpan:
    """Let a workflow of this executor's name the span of its latest execution; DONE in any case.

    Of a first execution the row that starts it names it already.
    """

    workflow_id: str
    executor_id: str
    last_span: str


@fast_dataclass()
class ResumeWorkflow:
    """Take a workflow that no other executor runs, and count one more execution of it.

    DONE if it is free or this executor's. CONFLICT, with the row, if it is finished or
    belongs to another living executor; without a row if there is none.
    """

    workflow_id: str
    executor_id: str
    resumed_at_us: int


@fast_dataclass()
class RecordStep:
    """Insert a step that is finished, or has begun. CONFLICT if another record is there."""

    step: StepRecord
    executor_id: str


@fast_dataclass()
class CompleteStep:
    """Give a step that has begun its outcome. CONFLICT if another one is there already."""

    step: StepRecord
    executor_id: str


@fast_dataclass()
class RecordChunk:
    """Insert a piece of an answer, and delete what it cuts. CONFLICT if another one is there."""

    piece: ChunkRecord
    executor_id: str

    @property
    def cuts(self) -> bool:
        """True if there may be something to delete."""
        return self.piece.cut_to is not None and self.piece.end_offset > 0


@fast_dataclass(kw_only=True)
class FinishWorkflow:
    """Give a workflow its outcome, a request its answer, and start what follows it.

    Invariant: what it starts is there if it is DONE, and only then. A workflow that has one of
    the ids already is left as it is: no other start makes ids from this workflow's.

    Attributes:
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
    """Forget the crashes of a workflow of this executor's, but the next one is the first.

    DONE in any case. It has run by itself for a while and its process is alive.
    """

    workflow_id: str
    executor_id: str


@fast_dataclass()
class ReleaseWorkflow:
    """Let anybody run a workflow of this executor's; DONE in any case.

    Attributes:
        retry_at_us: When a request may be claimed again; ``None`` for at once. Microseconds
            since 1970, UTC, by the writer's clock.
    """

    workflow_id: str
    executor_id: str
    retry_at_us: int | None = None


@fast_dataclass()
class ForgetRequest:
    """Delete this executor's request if no step or child is recorded; DONE in any case."""

    workflow_id: str
    executor_id: str


@fast_dataclass(kw_only=True)
class CancelWorkflow:
    """End a workflow that is not over, whoever runs it, and those below it that were called.

    DONE, with all that are cancelled by now, if it is, or was before. CONFLICT, with the row,
    if it has another outcome; without a row if there is none. What its owner writes for it
    from then on is FENCED; of a transaction, and of an end, the first one counts.

    Attributes:
        executor_id: Who cancels it.
        response: Kept for a request, so that it expires as one that is answered.
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
    """Return the executor that a write is made for."""
    if isinstance(write, (StartWorkflow, ClaimRequest)):
        return write.workflow.executor_id
    return write.executor_id


def workflow_id_of(write: Write) -> str:
    """Return the workflow that a write is about."""
    if isinstance(write, (StartWorkflow, ClaimRequest)):
        return write.workflow.workflow_id
    if isinstance(write, RecordChunk):
        return write.piece.workflow_id
    if isinstance(write, (RecordStep, CompleteStep)):
        return write.step.workflow_id
    return write.workflow_id


def is_same_start(existing: WorkflowRecord, wanted: WorkflowRecord) -> bool:
    """Tell a start whose answer got lost; ids of one executor differ in their microsecond."""
    return (existing.executor_id, existing.created_at_us, existing.input) == (
        wanted.executor_id,
        wanted.created_at_us,
        wanted.input,
    )


def is_same_end(existing: WorkflowRecord, end: FinishWorkflow) -> bool:
    """Tell an end whose answer got lost."""
    return (existing.state, existing.output, existing.error, existing.updated_at_us) == (
        end.state,
        end.output,
        end.error,
        end.finished_at_us,
    )


def of_refused_step(write: RecordStep | CompleteStep, existing: StepRecord | None) -> Outcome:
    """Return what became of a step's write that has changed nothing.

    Args:
        write: It.
        existing: The record that is there.
    """
    # The same record is this very write, whose answer got lost.
    if existing == write.step:
        return DONE
    # An outcome is only refused beside another one; else the workflow is not the executor's.
    is_in_the_way = existing is not None and (isinstance(write, RecordStep) or existing.is_finished)
    return Outcome(OutcomeKind.CONFLICT) if is_in_the_way else FENCED


class OutcomeKind(Enum):
    """What became of a write."""

    DONE = auto()
    """It is durable."""
    RESUMED = auto()
    """A request that waited for its retry is the executor's again; durable."""
    CONFLICT = auto()
    """Something else is there; nothing was written."""
    FENCED = auto()
    """The executor is dead, or does not own the workflow any more; nothing was written."""
    REJECTED = auto()
    """The database cannot hold it; nothing was written, and trying again is useless."""
    UNAVAILABLE = auto()
    """The database could not be used for as long as the storage patience lasts."""


@fast_dataclass()
class Outcome:
    """What became of a write, the row that was in its way and its answer, or the error.

    Attributes:
        cancelled: Ids of workflows that are cancelled, each with the executor that had it.
    """

    kind: OutcomeKind
    existing: WorkflowRecord | None = None
    response: ResponseRecord | None = None
    error: Exception | None = None
    cancelled: tuple[tuple[str, str | None], ...] = ()


DONE = Outcome(OutcomeKind.DONE)
FENCED = Outcome(OutcomeKind.FENCED)
