"""How far a request is, in whatever process it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from asgi_durable.engine.requests.claim_results import whole_seconds_until
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.suspension import asleep_until_us, seconds_until
from asgi_durable.storage.protocol import StepLog
from asgi_durable.storage.records import ResponseRecord, StoredProgress, WorkflowState

__all__ = ["CANCELLED", "DONE", "SUSPENDED", "Progress", "progress_of", "sleep_of"]

CANCELLED, DONE, RETRYABLE, RUNNING = "CANCELLED", "DONE", "RETRYABLE", "RUNNING"
SUSPENDED = "SUSPENDED"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is.

    Attributes:
        state: ``RUNNING``, ``SUSPENDED`` while it only sleeps, ``RETRYABLE`` if it waits for its
            retry, ``DONE`` or ``CANCELLED``.
        steps: How many steps and workflows it has called.
        attempts: How often it was begun or continued.
        response: The response, once it is ``DONE``.
        retry_after_seconds: When to look again or to retry, while it is not over.
        created_at_us: When it was claimed.
    """

    state: str
    steps: int
    attempts: int
    response: ResponseRecord | None
    retry_after_seconds: int
    created_at_us: int


async def progress_of(workflow_id: str, storage: StepLog, active: ActiveRuns) -> Progress | None:
    """Return how far a request is, ``None`` if there is none, or it has expired.

    Raises:
        StorageError: The storage failed.
    """
    found = await storage.get_progress(workflow_id)
    if found is None or not found.workflow.is_request:
        return None
    is_over = found.workflow.is_final
    response = await storage.get_response(workflow_id) if is_over else None
    if is_over and (response is None or not response.is_replayable_at(time.time_ns() // 1000)):
        return None
    sleeps_until_us = _end_of_sleep(found, active)
    state = _state(found, is_asleep=sleeps_until_us is not None)
    return Progress(
        state=state,
        steps=found.entries,
        attempts=found.workflow.attempts,
        response=response if state == DONE else None,
        retry_after_seconds=whole_seconds_until(sleeps_until_us or found.workflow.retry_at_us or 0),
        created_at_us=found.workflow.created_at_us,
    )


async def sleep_of(workflow_id: str, storage: StepLog, active: ActiveRuns) -> int | None:
    """Return when a sleeping workflow wakes up, here or elsewhere; ``None`` if it is awake.

    Returns:
        Microseconds since 1970, UTC.

    Raises:
        StorageError: The storage failed.
    """
    run = active.find(workflow_id)
    if run is not None:
        return asleep_until_us(run)
    found = await storage.get_progress(workflow_id)
    return _end_of_sleep(found, active) if found is not None else None


def _end_of_sleep(found: StoredProgress, active: ActiveRuns) -> int | None:
    if found.workflow.is_final or not found.is_owned:
        return None
    run = active.find(found.workflow.workflow_id)
    if run is not None:
        # The log does not show its other calls, nor whether a workflow that it calls sleeps.
        return asleep_until_us(run)
    end_us = found.sleeps_until_us
    return end_us if end_us is not None and seconds_until(end_us) > 0 else None


def _state(found: StoredProgress, *, is_asleep: bool) -> str:
    if found.workflow.state is WorkflowState.CANCELLED:
        return CANCELLED
    if found.workflow.is_final:
        return DONE
    if not found.is_owned:
        return RETRYABLE
    return SUSPENDED if is_asleep else RUNNING
