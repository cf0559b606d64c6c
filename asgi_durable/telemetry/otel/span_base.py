"""The base of the spans of runs and steps."""

from __future__ import annotations

import time
from contextvars import Token
from typing import Any, Protocol

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, StatusCode, Tracer, set_span_in_context

from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.telemetry.observer import Observed
from asgi_durable.telemetry.otel.metrics import Metrics
from asgi_durable.telemetry.otel.trace_context import with_stored_baggage

__all__ = [
    "INTERRUPTED",
    "SpanMaker",
    "Work",
    "attributes_of",
    "is_unsampled",
    "mark_failed",
    "name_of",
]

INTERRUPTED = "INTERRUPTED"


class SpanMaker(Protocol):
    """The observer that runs and steps make their spans with."""

    @property
    def tracer(self) -> Tracer | None:
        """Makes the spans."""

    @property
    def metrics(self) -> Metrics | None:
        """The instruments."""

    def continues_its_trace(self, workflow: WorkflowRecord) -> bool:
        """Tell whether a run without a caller belongs to the trace of the workflow's start."""


class Work(Observed):
    """A run or a step: its span is the current one, and it takes time."""

    __slots__ = ("_began", "_observer", "_token", "_workflow", "span")

    def __init__(self, observer: SpanMaker, workflow: WorkflowRecord) -> None:
        self._observer = observer
        self._workflow = workflow
        self._token: Token[Context] | None = None
        self._began = 0.0
        self.span: Any = None

    def _enter(self, span: Span | None) -> None:
        """Make the span the current one; of a span that does not record only the context counts."""
        context = set_span_in_context(span) if span is not None else None
        context = with_stored_baggage(self._workflow.trace_context, context)
        if context is not None:
            self._token = attach(context)
        if span is not None:
            self.span = span if span.is_recording() else None
        self._began = time.perf_counter()

    def _leave(self) -> float:
        """End the span, where it has not ended yet; return how many seconds it took."""
        if self.span is not None and self.span.is_recording():
            self.span.end()
        if self._token is not None:
            detach(self._token)
        return time.perf_counter() - self._began


def attributes_of(workflow: WorkflowRecord) -> dict[str, str | int]:
    """Return the attributes of every span of a workflow."""
    attributes: dict[str, str | int] = {
        "durable.workflow.id": workflow.workflow_id,
        "durable.workflow.name": workflow.name,
        "durable.run": workflow.attempts,
    }
    if workflow.request_id is not None:
        attributes["durable.request.id"] = workflow.request_id
    return attributes


def mark_failed(span: Span | None, error: Exception) -> None:
    """Mark a span as failed, with the error."""
    if span is not None:
        span.record_exception(error)
        span.set_attribute("error.type", name_of(error))
        span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")


def is_unsampled(span: Span) -> bool:
    """Tell whether nothing below a span is recorded."""
    context = span.get_span_context()
    return context.is_valid and not context.trace_flags.sampled and not span.is_recording()


def name_of(error: BaseException) -> str:
    """Return the full name of an error's class, as the conventions have it."""
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
