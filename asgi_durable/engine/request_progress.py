"""How far a request is, for who asks without a retry."""

from __future__ import annotations

import time
from dataclasses import dataclass

from asgi_durable.storage.protocol import StepLog
from asgi_durable.storage.records import ResponseRecord, StoredProgress, WorkflowState

__all__ = ["CANCELLED", "DONE", "Progress", "progress_of"]

CANCELLED, DONE, RETRYABLE, RUNNING = "CANCELLED", "DONE", "RETRYABLE", "RUNNING"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is.

    Attributes:
        state: ``RUNNING``, ``RETRYABLE`` if it waits for its retry, ``DONE`` or ``CANCELLED``.
        steps: How many steps and workflows it has called.
        attempts: How often it was begun or gone on with.
        response: The answer, once it is ``DONE``.
    """

    state: str
    steps: int
    attempts: int
    response: ResponseRecord | None


async def progress_of(workflow_id: str, storage: StepLog) -> Progress | None:
    """Return how far a request is, ``None`` if there is none, or it is expired.

    Raises:
        StorageError: The storage failed.
    """
    found = await storage.get_progress(workflow_id)
    if found is None or not found.workflow.is_request:
        return None
    is_over = found.workflow.is_final
    response = await storage.get_response(workflow_id) if is_over else None
    if is_over and (response is None or not response.is_given_at(time.time_ns() // 1000)):
        return None
    state = _state(found)
    return Progress(
        state=state,
        steps=found.entries,
        attempts=found.workflow.attempts,
        response=response if state == DONE else None,
    )


def _state(found: StoredProgress) -> str:
    if found.workflow.state is WorkflowState.CANCELLED:
        return CANCELLED
    if found.workflow.is_final:
        return DONE
    return RUNNING if found.is_owned else RETRYABLE
