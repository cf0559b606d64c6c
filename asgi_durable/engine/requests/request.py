"""One try of a request."""

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

__all__ = ["Request", "note", "record_of"]


@fast_dataclass(kw_only=True)
class Request:
    """One try of a request.

    Attributes:
        workflow_id: Made of the key and its scope.
        name: What the request is, for people.
        fingerprint: Equal for retries of one request, different for any other; or what stands
            for it until the whole body is there (``storage.records.PENDING_FINGERPRINT``).
        request_id: Of this try.
        retention: For how long its answer is kept.
        follows: True if it is to follow the stream that a twin's answer is recorded as.
        input: All that a process needs to go on with it without its client; ``None`` where that
            is left to the client.
        is_single_transaction: True for one that is claimed and answered by the commit of the
            only transaction that it calls.
        fingerprint_like: Returns this request's fingerprint, made in the same way as a stored
            one: earlier versions had another way, and keys may have been replaced.
        other_fingerprints: Returns all that it may have been recorded as.
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
    kept, seal = request.input, services.registry.sealer.seal_bytes
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
        input=seal(kept, REQUEST) if kept is not None else None,
        output=None,
        error=None,
        created_at_us=now,
        updated_at_us=now,
        trace_context=kept_context(services.telemetry),
        last_span=services.telemetry.observer.request_span(),
    )


logger = logging.getLogger(__name__)


def note(run: Run, what: str) -> None:
    """Log what has become of a request."""
    workflow = run.workflow
    logger.debug(
        "Request %s, attempt %d, request id %s: %s",
        workflow.workflow_id,
        workflow.attempts,
        workflow.request_id,
        what,
    )
