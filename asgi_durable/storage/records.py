"""The rows of the step log as the engine sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from asgi_durable.errors import StorageError
from asgi_durable.fast_dataclass import fast_dataclass

__all__ = [
    "CUT_ALL",
    "CUT_FOR_GOOD",
    "NO_OUTPUT",
    "PENDING_FINGERPRINT",
    "SLEEP",
    "TOMBSTONE_STATUS",
    "ChunkRecord",
    "DamagedRowError",
    "ResponseRecord",
    "StepRecord",
    "StoredProgress",
    "StoredRun",
    "StoredSecret",
    "TakenWorkflow",
    "WorkflowRecord",
    "WorkflowState",
    "is_pending",
    "shown",
]

LONGEST_TEXT = 200


# Begins what stands for the fingerprint of a request whose body has not come to its end; what
# follows is another one for each try.
PENDING_FINGERPRINT = "pending:"

# In the place of an expired answer's status; no answer has it.
TOMBSTONE_STATUS = 0
# The name of a sleep: a step that is recorded as it begins, and finished when it ends.
SLEEP = "durable.sleep"
# Beside the error of a step that runs at most once; no value is encoded so.
NO_OUTPUT = b""

# What a piece cuts: all before it, as it is a stream's start, and that without a new start.
CUT_ALL = -1
CUT_FOR_GOOD = -2


class WorkflowState(StrEnum):
    """Where a workflow is in its life; all but PENDING and SUSPENDED are final.

    No row is SUSPENDED: that is what a PENDING workflow is called while it sleeps.
    """

    PENDING = "PENDING"
    SUSPENDED = "SUSPENDED"
    SUCCESS = "SUCCESS"
    ERROR = "ERROR"
    CANCELLED = "CANCELLED"
    RETRIES_EXCEEDED = "RETRIES_EXCEEDED"


@fast_dataclass(kw_only=True)
class WorkflowRecord:
    """One workflow.

    Attributes:
        executor_id: Who runs it. It is free to be run by anybody where that is ``None`` or
            an executor that is not alive any more.
        attempts: Runs started so far, the first included.
        parent_id: The workflow that called or started it.
        parent_step: The place of that call in the parent's log.
        awaited: True if the parent called it, False if it only started it.
        fingerprint: Set on a request's own workflow: a digest of the request, or what stands
            for it (:func:`is_pending`).
        input: Encoded arguments; of a request all that a process needs to go on with it without
            its client, and absent where it may not.
        output: Encoded result, once the state is SUCCESS; absent for a request.
        error: Encoded exception, once the state is ERROR or RETRIES_EXCEEDED.
        created_at_us: Microseconds since 1970, UTC, by the writer's clock.
        updated_at_us: The same, of the last change of state.
        crashes: How many of its executors died in a row without any new entry in its log.
        crashed_at_entry: How many entries its log had when the last of them had died.
        trace_context: Of the span in which it was started, else the one that its request has
            brought: W3C ``traceparent``, and after a space ``tracestate`` if there is one. After
            a line break the ``baggage`` that is kept, if any, also where there is no trace.
        retry_at_us: Set on a request that waits for its retry: that is not made sooner.
        last_span: Of the span of its latest execution that had one, in the same form: of a
            request's, the request's span.
    """

    workflow_id: str
    name: str
    state: WorkflowState
    executor_id: str | None
    attempts: int
    parent_id: str | None
    parent_step: int | None
    awaited: bool
    request_id: str | None
    fingerprint: str | None
    input: bytes | None
    output: bytes | None
    error: bytes | None
    created_at_us: int
    updated_at_us: int
    crashes: int = 0
    crashed_at_entry: int = 0
    trace_context: str | None = None
    retry_at_us: int | None = None
    last_span: str | None = None

    @property
    def is_request(self) -> bool:
        """True for the workflow that is an HTTP request, False for a function's."""
        return self.fingerprint is not None

    def may_be(self, fingerprint: str | None) -> bool:
        """Tell whether it is the request with a fingerprint, or nobody knows its own yet."""
        return self.fingerprint == fingerprint or is_pending(self.fingerprint)

    @property
    def is_final(self) -> bool:
        """True once the outcome stands."""
        return self.state not in (WorkflowState.PENDING, WorkflowState.SUSPENDED)


@fast_dataclass(kw_only=True)
class StepRecord:
    """One step that is finished, or has begun.

    A step that runs at most once is recorded before it runs, with neither output nor error.
    Its failure stands: it is not dropped when the failures of a workflow are, and has
    ``NO_OUTPUT`` beside its error. Every other record has either an output or an error.

    Attributes:
        digest: Of the arguments, 16 bytes.
        output: Encoded result.
        error: Encoded exception.
        finished_at_us: Microseconds since 1970, UTC, by the writer's clock; until it is
            finished, when it has begun.
    """

    workflow_id: str
    step_number: int
    name: str
    digest: bytes
    output: bytes | None
    error: bytes | None
    finished_at_us: int

    @property
    def is_finished(self) -> bool:
        """False for a step that has begun and has no outcome."""
        return self.output is not None or self.error is not None


@fast_dataclass(kw_only=True)
class ResponseRecord:
    """The answer to a request.

    Attributes:
        headers: In order, duplicates kept, names in lower case; a JSON list of pairs.
        body: The whole body, ``None`` if it was not kept (streamed or too large).
        stream_end: Where the last of its pieces ends, if it was recorded as a stream.
        expires_at_us: When it is not given any more; microseconds since 1970, UTC, by the
            writer's clock.
        forgotten_at_us: When the key is free, at ``expires_at_us`` or later; in between the
            request leaves a tombstone.
    """

    workflow_id: str
    status_code: int
    headers: bytes
    body: bytes | None
    expires_at_us: int
    forgotten_at_us: int
    stream_end: int | None = None

    @property
    def is_tombstone(self) -> bool:
        """True if only the key is kept still, and the answer is not."""
        return self.status_code == TOMBSTONE_STATUS

    def is_given_at(self, now_us: int) -> bool:
        """Tell whether the answer is given at a time."""
        return now_us < self.expires_at_us and not self.is_tombstone


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    """What the ids of requests are made with, so that nobody can guess one.

    Attributes:
        value: 32 random bytes; in no log.
        added_later: True while the database may have requests whose ids were made without it.
    """

    value: bytes = field(repr=False)
    added_later: bool


@fast_dataclass(kw_only=True)
class TakenWorkflow:
    """A workflow that was free and has an owner again.

    Attributes:
        workflow: Its row, with the new owner.
        free_seconds: For how long it had been nobody's: since the last owner's lease ended, or
            its process was found gone before that, or it left. ``None`` where that is not
            known: the workflow was released alone, or the owner's row is gone.
    """

    workflow: WorkflowRecord
    free_seconds: float | None


@fast_dataclass(kw_only=True)
class ChunkRecord:
    """A piece of an answer that is streamed while it is recorded.

    Attributes:
        end_offset: Where it ends: the first one at 0, others as many bytes behind the one before
            them as they have. What was cut leaves a gap; no offset is ever used again.
        cut_to: Set on a piece that is no part of the body: what ended behind this offset is
            deleted, and was made by an execution that the later ones do not follow. With
            ``CUT_ALL`` it is the answer's start, with ``CUT_FOR_GOOD`` nothing is recorded.
        data: Bytes of the body, or what tells of the cut.
    """

    workflow_id: str
    end_offset: int
    cut_to: int | None
    data: bytes


@fast_dataclass(kw_only=True)
class StoredProgress:
    """How far a workflow is.

    Attributes:
        is_owned: True if an executor that is alive runs it.
        entries: How many entries its log has: steps, and workflows that it called.
        sleeps_until_us: When its last sleep ends or has ended, if that is the last entry and
            none before it is missing; microseconds since 1970, UTC.
    """

    workflow: WorkflowRecord
    is_owned: bool
    entries: int
    sleeps_until_us: int | None = None


@fast_dataclass(kw_only=True)
class StoredRun:
    """All that is recorded of one workflow: its row, its steps, its children.

    Attributes:
        damage: Why steps or children are missing here that are recorded; nobody can go on then.
    """

    workflow: WorkflowRecord
    steps: tuple[StepRecord, ...]
    children: tuple[WorkflowRecord, ...]
    damage: StorageError | None = None

    def sound(self) -> StoredRun:
        """Return this log, if it is whole: what is missing must not be taken for not done.

        Raises:
            StorageError: A row of it cannot be read.
        """
        if self.damage is not None:
            raise self.damage
        return self


def is_pending(fingerprint: str | None) -> bool:
    """Tell what stands for a fingerprint that is not known yet from one."""
    return fingerprint is not None and fingerprint.startswith(PENDING_FINGERPRINT)


class DamagedRowError(StorageError, ValueError):
    """A row cannot be read.

    Args:
        table: Its table's name.
        row_id: Its workflow's or executor's id, whatever that is.
        reason: What is wrong with it.
    """

    def __init__(self, table: str, row_id: object, reason: str) -> None:
        self.row_id = row_id
        super().__init__(f"the row {shown(row_id)} of {table} is damaged: {reason}")


def shown(value: object) -> str:
    """Return a value for a message, not all of a long one."""
    text = repr(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
