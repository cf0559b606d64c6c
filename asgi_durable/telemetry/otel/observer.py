"""The observer that makes spans and metrics of the engine's work."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from opentelemetry.trace import Span, Tracer, get_current_span

from asgi_durable.ids import step_key
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.telemetry.observer import Observed, ObservedRun, Observer, current_request_span
from asgi_durable.telemetry.otel.metrics import Metrics
from asgi_durable.telemetry.otel.run_spans import RunSpans, make_summary
from asgi_durable.telemetry.otel.span_base import (
    INTERRUPTED,
    Work,
    attributes_of,
    is_unsampled,
    mark_failed,
    name_of,
)
from asgi_durable.telemetry.otel.trace_context import format_trace_context, parse_trace_context

__all__ = ["OtelObserver", "mark_failed", "name_of"]

_COMMIT = {"durable.store.operation": "commit"}
# Outcomes of a claim whose response is another execution's work, or partly so.
_LINKED = frozenset({"resumed", "replayed", "waited", "conflict"})


class OtelObserver(Observer):
    """Makes spans if there is a tracer, and metrics if there are instruments.

    Args:
        tracer: Makes the spans.
        metrics: The instruments.
        continue_trace: How many seconds after a workflow's start a run without a caller continues
            the trace of that start.
        summary_span: True if each workflow that ends has a span of its whole life.
    """

    def __init__(
        self,
        tracer: Tracer | None,
        metrics: Metrics | None,
        *,
        continue_trace: float = 0.0,
        summary_span: bool = False,
    ) -> None:
        self.tracer = tracer
        self.metrics = metrics
        self._continue_trace = continue_trace
        self._summary_span = summary_span

    def continues_its_trace(self, workflow: WorkflowRecord) -> bool:
        """Tell whether a run without a caller belongs to the trace of the workflow's start."""
        limit = self._continue_trace
        return limit > 0 and time.time() - workflow.created_at_us / 1e6 <= limit

    def trace_context(self) -> str | None:
        context = format_trace_context(get_current_span().get_span_context())
        return context or super().trace_context()

    def request_span(self) -> str | None:
        span: Span | None = current_request_span.get()
        if self.tracer is None or span is None or not span.is_recording():
            return None
        return format_trace_context(span.get_span_context())

    def run(self, workflow: WorkflowRecord, *, entries: int) -> ObservedRun:
        if self.metrics is not None and workflow.attempts > 1:
            self.metrics.recoveries.add(1, {"durable.workflow.name": workflow.name})
        return RunSpans(self, workflow, entries)

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

    def attempt_begins(self, number: int) -> None:
        if self.tracer is not None:
            get_current_span().set_attribute("durable.step.attempt", number)

    def committed(self, writes: int, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.commit_writes.record(writes)
            self.metrics.store_duration.record(seconds, _COMMIT)

    def taken_over(self, workflow: WorkflowRecord, *, lag_seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.resume_lag.record(lag_seconds, {"durable.workflow.name": workflow.name})

    def workflow_ended(self, workflow: WorkflowRecord, outcome: str) -> None:
        if self._summary_span and self.tracer is not None:
            make_summary(self.tracer, workflow, outcome)

    def lease_lost(self) -> None:
        if self.metrics is not None:
            self.metrics.lease_losses.add(1)

    def request_claimed(
        self,
        outcome: str,
        workflow: WorkflowRecord | None,
        *,
        waited_seconds: float | None = None,
    ) -> None:
        if self.metrics is not None:
            attributes = {"idempotency.outcome": outcome}
            self.metrics.idempotency_requests.add(1, attributes)
            if waited_seconds is not None:
                self.metrics.idempotency_waits.record(waited_seconds, attributes)
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
            previous = parse_trace_context(workflow.last_span)
            if previous is not None and outcome == "resumed":
                span.add_link(previous, {"durable.link": "previous"})


class _Step(Work):
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
        if tracer is not None and not is_unsampled(get_current_span()):
            attributes = attributes_of(self._workflow)
            attributes["durable.step.seq"] = self._number
            attributes["durable.step.kind"] = self._kind
            attributes["durable.step.key"] = step_key(self._workflow.workflow_id, self._number)
            attributes["durable.step.attempt"] = 1
            span = tracer.start_span(f"durable.step {self._name}", attributes=attributes)
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
            attributes = {
                "durable.step.name": self._name,
                "durable.step.kind": self._kind,
                "durable.outcome": outcome,
            }
            self._observer.metrics.step_duration.record(seconds, attributes)
