"""One attempt of a request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from asgi_durable.codec.sealing.sealer import REQUEST
from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.runs.call import kept_context
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.services import Services
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.storage.records import WorkflowRecord, WorkflowState

__all__ = ["Request", "log_state", "record_of"]


@fast_dataclass(kw_only=True)
class Request:
    """One attempt of a request.

    Attributes:
        workflow_id: The workflow's id, made of the key and its scope.
        name: The request's name, for people.
        fingerprint: Equal for retries of one request, different for any other; or a placeholder
            until the whole body is there (``storage.records.PENDING_FINGERPRINT``).
        request_id: The id of this attempt.
        retention: How long the response is stored.
        follows: True to follow the stream of a duplicate whose response is being recorded.
        input: The stored request, with which a process continues it without its client; ``None``
            if only the client continues it.
        is_single_transaction: True for a request that one transaction claims and completes.
        fingerprint_like: Returns this request's fingerprint by the method of a stored one:
            earlier versions had another method, and keys may have been replaced.
        other_fingerprints: Returns the other fingerprints that may be recorded for this request.
    """

    workflow_id: str
    name: str
    fingerprint: str
    request_id: str
    retention: Retention = Retention()
    follows: bool = False
    input: bytes | None = None
    is_single_transaction: bool = False
    fingerprint_like: Callable[[str | None], str] | None = None
    other_fingerprints: Callable[[], Sequence[str]] = tuple


def record_of(services: Services, request: Request) -> WorkflowRecord:
    """Return the row that claims a request."""
    stored, seal = request.input, services.registry.sealer.seal_bytes
    now = time.time_ns() // 1000
    return WorkflowRecord(
        workflow_id=request.workflow_id,
        name=request.name,
        state=WorkflowState.PENDING,
        executor_id=services.executor.id,
        attempts=1,
        parent_id=None,
        parent_step=None,
        awaited=True,
        request_id=request.request_id,
        fingerprint=request.fingerprint,
        input=seal(stored, REQUEST) if stored is not None else None,
        output=None,
        error=None,
        created_at_us=now,
        updated_at_us=now,
        trace_context=kept_context(services.telemetry),
        last_span=services.telemetry.observer.request_span(),
    )


logger = logging.getLogger(__name__)


def log_state(run: Run, state: str) -> None:
    """Log the new state of a request."""
    workflow = run.workflow
    logger.debug(
        "Request %s, attempt %d, request id %s: %s",
        workflow.workflow_id,
        workflow.attempts,
        workflow.request_id,
        state,
    )
