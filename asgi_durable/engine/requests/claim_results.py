"""What is told instead where a request cannot be claimed, as its key is taken."""

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
    "Answered",
    "Cancelled",
    "Claimed",
    "Expired",
    "FingerprintWanted",
    "Followed",
    "InProgress",
    "KeyReused",
    "Refusal",
    "Refused",
    "RefusedError",
    "RetryLater",
    "result_for_running",
    "result_for_taken_key",
    "whole_seconds_until",
]


@dataclass(frozen=True, slots=True)
class InProgress:
    """The same request runs already.

    Attributes:
        sleeps_until_us: When it wakes up, if all that it does is to sleep; microseconds since
            1970, UTC.
    """

    outcome: ClassVar[str] = "conflict"
    workflow: WorkflowRecord
    sleeps_until_us: int | None = None


@dataclass(frozen=True, slots=True)
class Followed:
    """The same request runs already, and its answer is recorded as a stream meanwhile."""

    outcome: ClassVar[str] = "waited"
    workflow: WorkflowRecord


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The key belongs to a request with another fingerprint.

    Attributes:
        fingerprint: The other one.
    """

    fingerprint: str | None = field(default=None, compare=False)
    outcome: ClassVar[str] = "mismatch"
    workflow: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The request is finished."""

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
    """The request was finished, and its answer is not given any more."""

    outcome: ClassVar[str] = "expired"
    workflow: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class FingerprintWanted:
    """A request has the key; whether it is the same only this one's fingerprint can tell."""

    outcome: ClassVar[str] = "compared"
    workflow: WorkflowRecord


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The request has failed, and waits for a retry that is not made yet.

    Attributes:
        seconds: After how many it may be, rounded up; at least 1.
    """

    outcome: ClassVar[str] = "too-soon"
    workflow: WorkflowRecord
    seconds: int


Refused = InProgress | KeyReused | Expired | Cancelled | RetryLater
Refusal = Refused | Followed | Answered | FingerprintWanted


class RefusedError(Exception):
    """The key is taken; carries the row that has it, and the answer if there is one."""

    def __init__(self, existing: WorkflowRecord, response: ResponseRecord | None) -> None:
        super().__init__(existing.workflow_id)
        self.existing = existing
        self.response = response


def result_for_running(running: WorkflowRecord, fingerprint: str) -> Refusal:
    """Return what to tell of a request that is not finished."""
    if not running.may_be(fingerprint):
        return _other(running, fingerprint)
    if running.retry_at_us is None:
        return InProgress(running)
    return RetryLater(running, whole_seconds_until(running.retry_at_us))


def _other(existing: WorkflowRecord, fingerprint: str) -> KeyReused | FingerprintWanted:
    if is_pending(fingerprint):
        return FingerprintWanted(existing)
    return KeyReused(existing.fingerprint)


async def result_for_taken_key(
    refused: RefusedError, fingerprint: str, storage: StepLog
) -> Refusal | None:
    """Return what to tell who has made a claim, ``None`` if it is to be made again.

    An expired request tells nothing any more, not even that another one has its key.

    Raises:
        StorageError: The storage failed.
    """
    existing = refused.existing
    if not existing.is_final:
        return result_for_running(existing, fingerprint)
    # Not told with the row: a long answer, or that of another request.
    answer = refused.response or await storage.get_response(existing.workflow_id)
    now_us = time.time_ns() // 1000
    if answer is None or not answer.is_given_at(now_us):
        if answer is not None and now_us < answer.forgotten_at_us:
            return Expired()
        if await storage.forget_request(existing.workflow_id, now_us):
            return None
    # It is given still where something that the request has started is not finished.
    if existing.fingerprint != fingerprint:
        return _other(existing, fingerprint)
    if answer is None or answer.is_tombstone:
        return InProgress(existing)
    is_cancelled = existing.state is WorkflowState.CANCELLED
    return Cancelled(existing) if is_cancelled else Answered(existing, answer)


def whole_seconds_until(time_us: int) -> int:
    """Return how many seconds there are left, rounded up; at least 1."""
    return max(1, -((time.time_ns() // 1000 - time_us) // 1_000_000))


@fast_dataclass()
class Claimed:
    """The request is this caller's to answer; its handler runs in a task of the engine's."""

    run: Run

    @property
    def outcome(self) -> str:
        return "executed" if self.workflow.attempts == 1 else "resumed"

    @property
    def workflow(self) -> WorkflowRecord:
        return self.run.workflow
