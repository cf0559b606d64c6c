"""The observer that makes spans and figures of the engine's work."""

from __future__ import annotations

import time
from contextvars import Token
from types import TracebackType
from typing import Any, Self

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from asgi_durable.ids import step_key
from asgi_durable.otel.baggage import with_kept_baggage
from asgi_durable.otel.metrics import Metrics
from asgi_durable.otel.trace_context import format_trace_context, parse_trace_context
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.telemetry_port import Observed, ObservedRun, Observer, current_request_span

__all__ = ["OtelObserver", "mark_failed", "name_of"]

INTERRUPTED = "INTERRUPTED"
_COMMIT = {"durable.store.operation": "commit"}
# Outcomes of a claim that another execution's work is the answer to, or part of it.
_LINKED = frozenset({"resumed", "replayed", "waited", "conflict"})


class OtelObserver(Observer):
    """Makes spans where there is a tracer, and figures where there are instruments.

    Args:
        tracer: Makes the spans.
        metrics: The instruments.
        continue_trace: For how many seconds after a workflow's start a run that nobody calls
            goes on in the trace of that start.
    """

    def __init__(
        self, tracer: Tracer | None, metrics: Metrics | None, *, continue_trace: float = 0.0
    ) -> None:
        self.tracer = tracer
        self.metrics = metrics
        self._continue_trace = continue_trace

    def goes_on_in_its_trace(self, workflow: WorkflowRecord) -> bool:
        """Tell whether a run that nobody calls belongs to the trace of the workflow's start."""
        limit = self._continue_trace
        return limit > 0 and time.time() - workflow.created_at_us / 1e6 <= limit

    def trace_context(self) -> str | None:
        context = format_trace_context(get_current_span().get_span_context())
        return context or super().trace_context()

    def run(self, workflow: WorkflowRecord, *, entries: int) -> ObservedRun:
        if self.metrics is not None and workflow.attempts > 1:
            self.metrics.recoveries.add(1, {"durable.workflow.name": workflow.name})
        return _Run(self, workflow, entries)

    def step(self, workflow: WorkflowRecord, name: str, number: int, *, kind: str) -> Observed:
        return _Step(self, workflow, name, number, kind)

    def step_is_tried_again(self, name: str, error: Exception) -> None:
        if self.metrics is not None:
            self.metrics.step_retries.add(1, {"durable.step.name": name})
        if self.tracer is not None:
            get_current_span().add_event(
                "durable.step.retry",
                {"exception.type": name_of(error), "exception.message": str(error)},
            )

    def committed(self, writes: int, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.commit_writes.record(writes)
            self.metrics.store_duration.record(seconds, _COMMIT)

    def taken_over(self, workflow: WorkflowRecord, *, lag_seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.resume_lag.record(lag_seconds, {"durable.workflow.name": workflow.name})

    def lease_lost(self) -> None:
        if self.metrics is not None:
            self.metrics.lease_losses.add(1)

    def request_claimed(self, outcome: str, workflow: WorkflowRecord | None) -> None:
        if self.metrics is not None:
            self.metrics.idempotency_requests.add(1, {"idempotency.outcome": outcome})
        span: Span = current_request_span.get() or get_current_span()
        if not span.is_recording():
            return
        span.set_attribute("idempotency.outcome", outcome)
        if workflow is not None:
            span.set_attribute("durable.workflow.id", workflow.workflow_id)
            span.set_attribute("durable.run", workflow.attempts)
            origin = parse_trace_context(workflow.trace_context)
            if origin is not None and outcome in _LINKED:
                span.add_link(origin, {"durable.link": "origin"})


class _Work(Observed):
    """What runs and steps have in common: their span is the current one, and they take time."""

    __slots__ = ("_began", "_observer", "_token", "_workflow", "span")

    def __init__(self, observer: OtelObserver, workflow: WorkflowRecord) -> None:
        self._observer = observer
        self._workflow = workflow
        self._token: Token[Context] | None = None
        self._began = 0.0
        self.span: Any = None

    def _enter(self, span: Span | None) -> None:
        """Let the span be the current one; of one that does not record only its context counts."""
        context = set_span_in_context(span) if span is not None else None
        context = with_kept_baggage(self._workflow.trace_context, context)
        if context is not None:
            self._token = attach(context)
        if span is not None:
            self.span = span if span.is_recording() else None
        self._began = time.perf_counter()

    def _leave(self) -> float:
        if self.span is not None:
            self.span.end()
        if self._token is not None:
            detach(self._token)
        return time.perf_counter() - self._began

    def _attributes(self) -> dict[str, str | int]:
        workflow = self._workflow
        attributes: dict[str, str | int] = {
            "durable.workflow.id": workflow.workflow_id,
            "durable.workflow.name": workflow.name,
            "durable.run": workflow.attempts,
        }
        if workflow.request_id is not None:
            attributes["durable.request.id"] = workflow.request_id
        return attributes


class _Step(_Work):
    __slots__ = ("_kind", "_name", "_number")

    def __init__(
        self, observer: OtelObserver, workflow: WorkflowRecord, name: str, number: int, kind: str
    ) -> None:
        super().__init__(observer, workflow)
        self._name = name
        self._number = number
        self._kind = kind

    def __enter__(self) -> Self:
        tracer = self._observer.tracer
        span = None
        if tracer is not None and not _is_unsampled(get_current_span()):
            attributes = self._attributes()
            attributes["durable.step.seq"] = self._number
            attributes["durable.step.kind"] = self._kind
            span = tracer.start_span(f"durable.step {self._name}", attributes=attributes)
            if span.is_recording():
                key = step_key(self._workflow.workflow_id, self._number)
                span.set_attribute("durable.step.key", key)
        self._enter(span)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        outcome = "SUCCESS"
        if isinstance(exc_value, Exception):
            outcome = "ERROR"
            mark_failed(self.span, exc_value)
        elif exc_value is not None:
            outcome = INTERRUPTED
            if self.span is not None:
                self.span.set_attribute("durable.outcome", outcome)
        seconds = self._leave()
        if self._observer.metrics is not None:
            figures = {
                "durable.step.name": self._name,
                "durable.step.kind": self._kind,
                "durable.outcome": outcome,
            }
            self._observer.metrics.step_duration.record(seconds, figures)


class _Run(_Work, ObservedRun):
    __slots__ = ("_entries", "_outcome")

    def __init__(self, observer: OtelObserver, workflow: WorkflowRecord, entries: int) -> None:
        super().__init__(observer, workflow)
        self._entries = entries
        self._outcome = INTERRUPTED

    def __enter__(self) -> Self:
        tracer = self._observer.tracer
        self._enter(self._start(tracer) if tracer is not None else None)
        return self

    def failed(self, error: Exception) -> None:
        mark_failed(self.span, error)

    def ended(self, outcome: str) -> None:
        self._outcome = outcome

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.span is not None:
            self.span.set_attribute("durable.outcome", self._outcome)
        seconds = self._leave()
        if self._observer.metrics is not None:
            figures = {
                "durable.workflow.name": self._workflow.name,
                "durable.outcome": self._outcome,
            }
            self._observer.metrics.run_duration.record(seconds, figures)

    def _start(self, tracer: Tracer) -> Span | None:
        """Start a child of the current span, linked to where the workflow was started."""
        current = get_current_span()
        if _is_unsampled(current):
            return None
        caller = current.get_span_context()
        origin = parse_trace_context(self._workflow.trace_context)
        if not caller.is_valid and origin is not None:
            return self._start_resumed(tracer, origin)
        links = []
        if origin is not None and origin.span_id != caller.span_id:
            links.append(_link_to(origin))
        return tracer.start_span(self._name(), attributes=self._attributes(), links=links)

    def _start_resumed(self, tracer: Tracer, origin: SpanContext) -> Span:
        """Start a root that is linked to where the workflow was started; recorded if that was.

        Where it may go on in that trace it is a child of that instead.
        """
        if not origin.trace_flags.sampled:
            return NonRecordingSpan(origin)
        name, attributes = self._name(), self._attributes()
        if not self._observer.goes_on_in_its_trace(self._workflow):
            links = [_link_to(origin)]
            span = tracer.start_span(name, attributes=attributes, links=links)
            if span.is_recording():
                return span
            # The sampler would drop a new trace. In its origin's it has decided to record.
        context = set_span_in_context(NonRecordingSpan(origin))
        return tracer.start_span(name, context=context, attributes=attributes)

    def _name(self) -> str:
        return f"durable.run {self._workflow.name}"

    def _attributes(self) -> dict[str, str | int]:
        attributes = super()._attributes()
        if self._entries:
            attributes["durable.replayed_steps"] = self._entries
        return attributes


def _link_to(origin: SpanContext) -> Link:
    return Link(origin, {"durable.link": "origin"})


def mark_failed(span: Span | None, error: Exception) -> None:
    """Let a span say that it failed, and why."""
    if span is not None:
        span.record_exception(error)
        span.set_attribute("error.type", name_of(error))
        span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")


def _is_unsampled(span: Span) -> bool:
    """Tell whether it is decided that nothing below a span is recorded."""
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
