"""The results of a claim: the request is claimed, or its key is taken.

Each result has two members for spans and metrics: ``outcome``, its name there, and ``workflow``,
the row of the request; ``None`` if the client must not learn of that request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

from asgi_durable.engine.runs.run import Run
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.storage.protocol import StepLog
from asgi_durable.storage.records import (
    ResponseRecord,
    WorkflowRecord,
    WorkflowState,
    is_pending,
)

__all__ = [
    "Cancelled",
    "Claim",
    "Claimed",
    "Expired",
    "FingerprintWanted",
    "Finished",
    "InProgress",
    "KeyReused",
    "Refusal",
    "RetryLater",
    "Streaming",
    "TakenKey",
    "result_for_running",
    "result_for_taken_key",
    "whole_seconds_until",
]


@fast_dataclass()
class Claimed:
    """The request is claimed: its handler runs in a task of the engine."""

    run: Run

    @property
    def outcome(self) -> str:
        """``"executed"`` for the first attempt, ``"resumed"`` for a later one."""
        return "executed" if self.run.workflow.attempts == 1 else "resumed"

    @property
    def workflow(self) -> WorkflowRecord:
        """The row of the request."""
        return self.run.workflow


@dataclass(frozen=True, slots=True)
class InProgress:
    """The same request runs already.

    Attributes:
        workflow: The row of the request.
        sleeps_until_us: When it wakes up, if it only sleeps; microseconds since 1970, UTC.
    """

    outcome: ClassVar[str] = "conflict"
    workflow: WorkflowRecord
    sleeps_until_us: int | None = None


@dataclass(frozen=True, slots=True)
class Streaming:
    """The same request runs already, and its response is being recorded as a stream."""

    outcome: ClassVar[str] = "waited"
    workflow: WorkflowRecord


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The key belongs to a request with another fingerprint.

    Attributes:
        fingerprint: The fingerprint of the other request.
    """

    fingerprint: str | None = field(default=None, compare=False)
    outcome: ClassVar[str] = "mismatch"
    workflow: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is finished, and its response is stored."""

    outcome: ClassVar[str] = "replayed"
    workflow: WorkflowRecord
    response: ResponseRecord


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The request was cancelled."""

    outcome: ClassVar[str] = "cancelled"
    workflow: WorkflowRecord


@dataclass(frozen=True, slots=True)
class Expired:
    """The request was finished, and its response has expired."""

    outcome: ClassVar[str] = "expired"
    workflow: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class FingerprintWanted:
    """A request has the key; only the fingerprint of this one can tell whether it is the same."""

    outcome: ClassVar[str] = "compared"
    workflow: WorkflowRecord


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The request has failed, and its retry comes too early.

    Attributes:
        workflow: The row of the request.
        seconds: How many seconds are left until a retry is accepted, rounded up; at least 1.
    """

    outcome: ClassVar[str] = "too-soon"
    workflow: WorkflowRecord
    seconds: int


# The client gets an error.
Refusal = InProgress | KeyReused | Expired | Cancelled | RetryLater
# The client gets the response of this attempt, a stored one, or an error. Only the caller can
# provide the fingerprint that a comparison needs, and then claims again.
Claim = Claimed | Finished | Streaming | Refusal | FingerprintWanted


@dataclass(frozen=True, slots=True)
class TakenKey:
    """The row that has the key of a claim, as the database returned it.

    Attributes:
        existing: The row.
        response: Its response, if the row is finished and the database returned both.
    """

    existing: WorkflowRecord
    response: ResponseRecord | None


def result_for_running(running: WorkflowRecord, fingerprint: str) -> Refusal | FingerprintWanted:
    """Return the result of a claim whose key belongs to an unfinished request."""
    if not running.may_have_fingerprint(fingerprint):
        return _other(running, fingerprint)
    if running.retry_at_us is None:
        return InProgress(running)
    return RetryLater(running, whole_seconds_until(running.retry_at_us))


def _other(existing: WorkflowRecord, fingerprint: str) -> KeyReused | FingerprintWanted:
    if is_pending(fingerprint):
        return FingerprintWanted(existing)
    return KeyReused(existing.fingerprint)


async def result_for_taken_key(
    taken: TakenKey, fingerprint: str, storage: StepLog
) -> Finished | Refusal | FingerprintWanted | None:
    """Return the result of a claim whose key is taken, ``None`` if it must be made again.

    An expired request reveals nothing any more, not even that it was another one.

    Raises:
        StorageError: The storage failed.
    """
    existing = taken.existing
    if not existing.is_final:
        return result_for_running(existing, fingerprint)
    # The row comes without its response if that is long, or belongs to another request.
    response = taken.response or await storage.get_response(existing.workflow_id)
    now_us = time.time_ns() // 1000
    if response is None or not response.is_replayable_at(now_us):
        if response is not None and now_us < response.forgotten_at_us:
            return Expired()
        if await storage.forget_request(existing.workflow_id, now_us):
            return None
    # An expired response stays while a workflow that the request has started is not finished.
    if existing.fingerprint != fingerprint:
        return _other(existing, fingerprint)
    if response is None or response.is_tombstone:
        return InProgress(existing)
    is_cancelled = existing.state is WorkflowState.CANCELLED
    return Cancelled(existing) if is_cancelled else Finished(existing, response)


def whole_seconds_until(time_us: int) -> int:
    """Return how many seconds are left until a time, rounded up; at least 1."""
    return max(1, -((time.time_ns() // 1000 - time_us) // 1_000_000))
