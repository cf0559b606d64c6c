"""Records: what the engine reads from the storage and writes to it, free of any database."""

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


# Prefix of a placeholder for the fingerprint of a request, used until its whole body is read; a
# random part follows, a new one for each attempt.
PENDING_FINGERPRINT = "pending:"

# The status code of a tombstone, which replaces an expired response. No real response has it.
TOMBSTONE_STATUS = 0
# The name of a sleep, a step that is recorded when it begins and completed when it ends.
SLEEP = "durable.sleep"
# The output of a failed step that runs at most once. No encoded value is empty.
NO_OUTPUT = b""

# Values of ``ChunkRecord.cut_to``: delete the whole stream, as a new one starts here; delete it
# and record no other.
CUT_ALL = -1
CUT_FOR_GOOD = -2


class WorkflowState(StrEnum):
    """The state of a workflow; all but PENDING and SUSPENDED are final.

    SUSPENDED is never stored: a PENDING workflow is shown as SUSPENDED while it sleeps.
    """

    PENDING = "PENDING"
    SUSPENDED = "SUSPENDED"
    SUCCESS = "SUCCESS"
    ERROR = "ERROR"
    CANCELLED = "CANCELLED"
    RETRIES_EXCEEDED = "RETRIES_EXCEEDED"


@fast_dataclass(kw_only=True)
class WorkflowRecord:
    """One workflow: a durable function, or a request with a key.

    Attributes:
        executor_id: The executor that owns it. The workflow is free, so that any executor may
            take it, if this is ``None`` or an executor that is no longer alive.
        attempts: The number of its runs so far, the first one included.
        parent_id: The workflow that called or started it.
        parent_step: The number of that call in the parent's log.
        awaited: True if the parent called it and awaits it, False if the parent only started it.
        fingerprint: Set only on a request: a digest of the request, or a placeholder
            (:func:`is_pending`).
        input: The encoded arguments. For a request, all that a process needs to resume it
            without its client; ``None`` if that is not allowed.
        output: The encoded result, once the state is SUCCESS; ``None`` for a request.
        error: The encoded exception, once the state is ERROR or RETRIES_EXCEEDED.
        created_at_us: Microseconds since 1970, UTC, by the writer's clock.
        updated_at_us: The time of the last change of state, in the same unit.
        crashes: How many of its executors died in a row without a new entry in its log.
        crashed_at_entry: The number of entries in its log when the last of them had died.
        trace_context: The span in which it was started, else the span that its request named:
            W3C ``traceparent``, then a space and ``tracestate`` if there is one. A line break
            and the stored ``baggage`` follow if there is any, even without a span.
        retry_at_us: Set on a request that waits for its retry: the retry is refused before.
        last_span: The span of its latest run that had one, in the same form; for a request,
            the span of the HTTP request.
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
        """True if it is an HTTP request, False if it is a durable function."""
        return self.fingerprint is not None

    def may_have_fingerprint(self, fingerprint: str | None) -> bool:
        """Return True if its fingerprint is this one, or is not known yet."""
        return self.fingerprint == fingerprint or is_pending(self.fingerprint)

    @property
    def is_final(self) -> bool:
        """True if it has its outcome, which never changes."""
        return self.state not in (WorkflowState.PENDING, WorkflowState.SUSPENDED)


@fast_dataclass(kw_only=True)
class StepRecord:
    """One step that is finished, or has begun.

    A step that runs at most once is recorded before it runs, with neither output nor error. Its
    failure is final, and so has ``NO_OUTPUT`` beside its error: a retry of the workflow drops
    other failures and runs those steps again. Every other record has an output or an error.

    Attributes:
        digest: A digest of the arguments, 16 bytes.
        output: The encoded result.
        error: The encoded exception.
        finished_at_us: The time of its end, or of its beginning until then: microseconds since
            1970, UTC, by the writer's clock.
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
        """False if it has begun and has no outcome."""
        return self.output is not None or self.error is not None


@fast_dataclass(kw_only=True)
class ResponseRecord:
    """The response to a request.

    Attributes:
        headers: A JSON list of pairs, encoded: ``[["content-type", "text/plain"]]``. Names are
            in lower case; the order is that of the response, and a name may occur twice.
        body: The whole body, ``None`` if it was not stored (streamed or too large).
        stream_end: The end offset of its last chunk, if it was recorded as a stream.
        expires_at_us: From this time on no duplicate gets the response; microseconds since 1970,
            UTC, by the writer's clock.
        forgotten_at_us: From this time on the key is free. It is ``expires_at_us`` or later; in
            between, a tombstone takes the response's place.
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
        """True if only the key is still taken, and the response is deleted."""
        return self.status_code == TOMBSTONE_STATUS

    def is_replayable_at(self, now_us: int) -> bool:
        """Return True if a duplicate gets the response at this time (microseconds, UTC)."""
        return now_us < self.expires_at_us and not self.is_tombstone


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    """The secret that makes the ids of requests impossible to guess.

    Attributes:
        value: 32 random bytes, never logged.
        added_later: True while the database may have requests whose ids were made without it.
    """

    value: bytes = field(repr=False)
    added_later: bool


@fast_dataclass(kw_only=True)
class TakenWorkflow:
    """A workflow that was free and has an owner again.

    Attributes:
        workflow: Its row, with the new owner.
        free_seconds: How long it was free: since its last owner's lease ended, or its process
            was found dead before that, or it left. ``None`` if that is not known: the workflow
            was released alone, or the row of the owner is deleted.
    """

    workflow: WorkflowRecord
    free_seconds: float | None


@fast_dataclass(kw_only=True)
class ChunkRecord:
    """A chunk of a response that is streamed while it is recorded.

    A stream begins with a chunk at offset 0 that cuts all (``CUT_ALL``) and has no bytes of the
    body. A run that does not repeat the bytes of an earlier run cuts the chunks that differ.

    Attributes:
        end_offset: The offset at which it ends: 0 for the first chunk, for any other one the
            offset of the chunk before it plus the length of *data*. Deleted chunks leave a gap:
            no offset is ever used again.
        cut_to: Set on a chunk that is not a part of the body: chunks that end behind this offset
            and before this chunk are deleted. ``CUT_ALL`` starts the response,
            ``CUT_FOR_GOOD`` ends its recording.
        data: Bytes of the body; for a cut, the encoded description of it.
    """

    workflow_id: str
    end_offset: int
    cut_to: int | None
    data: bytes


@fast_dataclass(kw_only=True)
class StoredProgress:
    """The progress of a workflow.

    Attributes:
        is_owned: True if an executor that is alive owns it.
        entries: The number of entries in its log: steps, and workflows that it called or started.
        sleeps_until_us: The end of its last sleep, if that is its last entry and no entry before
            it is missing; microseconds since 1970, UTC.
    """

    workflow: WorkflowRecord
    is_owned: bool
    entries: int
    sleeps_until_us: int | None = None


@fast_dataclass(kw_only=True)
class StoredRun:
    """All records of one workflow: its row, its steps, its children.

    Attributes:
        damage: The error for a row that cannot be read and is missing here. The workflow cannot
            continue then.
    """

    workflow: WorkflowRecord
    steps: tuple[StepRecord, ...]
    children: tuple[WorkflowRecord, ...]
    damage: StorageError | None = None

    def sound(self) -> StoredRun:
        """Return this log if it is complete: a missing step would be run again.

        Raises:
            StorageError: A row of it cannot be read.
        """
        if self.damage is not None:
            raise self.damage
        return self


def is_pending(fingerprint: str | None) -> bool:
    """Return True for the placeholder of a fingerprint that is not known yet."""
    return fingerprint is not None and fingerprint.startswith(PENDING_FINGERPRINT)


class DamagedRowError(StorageError, ValueError):
    """A row cannot be read.

    Args:
        table: The name of its table.
        row_id: The id of its workflow or executor; of any type, as the row is damaged.
        reason: The defect, for the message.
    """

    def __init__(self, table: str, row_id: object, reason: str) -> None:
        self.row_id = row_id
        super().__init__(f"the row {shown(row_id)} of {table} is damaged: {reason}")


def shown(value: object) -> str:
    """Return a value as a message shows it, a long one abridged."""
    text = repr(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
