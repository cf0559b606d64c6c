"""The spans of one execution of a workflow, and its duration."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self

from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanContext, StatusCode, Tracer, get_current_span

from asgi_durable.storage.records import WorkflowRecord, WorkflowState
from asgi_durable.telemetry.observer import ObservedRun
from asgi_durable.telemetry.otel.execution_span import ExecutionSpan
from asgi_durable.telemetry.otel.root_spans import Before, before
from asgi_durable.telemetry.otel.span_base import (
    INTERRUPTED,
    SpanMaker,
    Work,
    attributes_of,
    is_unsampled,
    mark_failed,
)
from asgi_durable.telemetry.otel.trace_context import format_trace_context, parse_trace_context

__all__ = ["RunSpans", "make_summary"]


class RunSpans(Work, ObservedRun):
    """One execution: a span for each time between its suspensions."""

    __slots__ = (
        "_context",
        "_entries",
        "_first",
        "_is_over",
        "_is_replaying",
        "_outcome",
        "_since",
        "_waited",
    )

    def __init__(self, observer: SpanMaker, workflow: WorkflowRecord, entries: int) -> None:
        super().__init__(observer, workflow)
        self._entries = entries
        self._outcome = INTERRUPTED
        # The context of the workflow's call, or of no call.
        self._context: Context | None = None
        self._first: Span | None = None
        # When it was suspended, and how many seconds it had been suspended before that.
        self._since: float | None = None
        self._waited = 0.0
        self._is_over = False
        self._is_replaying = entries > 0

    def begin(self) -> str | None:
        tracer = self._observer.tracer
        if tracer is None:
            return None
        if self._context is None:
            self._context = get_current()
            self._first = self._start(tracer)
        return _text_of(self._first)

    def __enter__(self) -> Self:
        """Begin, unless it has begun already."""
        self.begin()
        self._enter(self._first)
        return self

    def failed(self, error: Exception) -> None:
        self.continued()
        mark_failed(self.span, error)

    def replayed(self) -> None:
        if self._is_replaying:
            self._is_replaying = False
            if self.span is not None:
                seconds = time.perf_counter() - self._began
                self.span.add_event("durable.replayed", {"durable.replay.duration": seconds})

    def ended(self, outcome: str) -> None:
        self.continued()
        # If it has made no new call.
        self.replayed()
        self._outcome = outcome

    def suspended(self, until_us: int) -> None:
        if self._is_over or self._since is not None:
            return
        self._since = time.perf_counter()
        if self.span is not None:
            until = datetime.fromtimestamp(until_us / 1e6, UTC).isoformat(timespec="milliseconds")
            self.span.add_event("durable.suspended", {"durable.suspended.until": until})
            self.span.set_attribute("durable.outcome", WorkflowState.SUSPENDED.value)
            self.span.end()

    def continued(self) -> str | None:
        if self._is_over or self._since is None:
            return None
        self._waited += time.perf_counter() - self._since
        self._since = None
        tracer, span = self._observer.tracer, self.span
        if tracer is None or span is None:
            return None
        span.now = self._start_again(tracer, span.get_span_context())
        return _text_of(span)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        self._is_over = True
        if self.span is not None and self._since is None:
            self.span.set_attribute("durable.outcome", self._outcome)
        if self._since is not None:
            self._waited += time.perf_counter() - self._since
        seconds = self._leave() - self._waited
        if self._observer.metrics is not None:
            attributes = {
                "durable.workflow.name": self._workflow.name,
                "durable.outcome": self._outcome,
            }
            self._observer.metrics.run_duration.record(max(0.0, seconds), attributes)

    def _start(self, tracer: Tracer) -> Span | None:
        """Start a child of the current span, linked to what was before."""
        current = get_current_span()
        if is_unsampled(current):
            return None
        caller, past = current.get_span_context(), before(self._workflow)
        attributes = attributes_of(self._workflow)
        if self._entries:
            attributes["durable.replayed_steps"] = self._entries
        start_span = partial(tracer.start_span, self._name, attributes=attributes)
        if caller.is_valid:
            span = start_span(links=past.links(caller.span_id))
        else:
            is_root = not self._observer.continues_its_trace(self._workflow)
            span = past.start(start_span, is_root=is_root)
        return ExecutionSpan(span) if span.is_recording() else span

    def _start_again(self, tracer: Tracer, previous: SpanContext) -> Span:
        """Start the span after a suspension: below a caller that is a run, else on its own.

        Any other caller, for example a request, was not suspended with the workflow: below its
        span this one would keep a trace open for as long as the workflow waits.
        """
        past = before(self._workflow)
        origin = past.origin
        if origin is not None and not origin.trace_flags.sampled:
            # The call of this execution has decided anew.
            origin = None
        past = Before(origin, previous)
        start_span = partial(
            tracer.start_span, self._name, attributes=attributes_of(self._workflow)
        )
        caller = get_current_span(self._context)
        if isinstance(caller, ExecutionSpan) and caller.is_recording():
            links = past.links(caller.get_span_context().span_id)
            return start_span(context=self._context, links=links)
        is_root = not self._observer.continues_its_trace(self._workflow)
        return past.start(start_span, is_root=is_root, context=self._context)

    @property
    def _name(self) -> str:
        return f"durable.run {self._workflow.name}"


def _text_of(span: Span | None) -> str | None:
    """Return the context of a recorded span, as a workflow stores it."""
    if span is None or not span.is_recording():
        return None
    context = span.get_span_context()
    return format_trace_context(context) if context.trace_flags.sampled else None


def make_summary(tracer: Tracer, workflow: WorkflowRecord, outcome: str) -> None:
    """Make the span of a workflow that has just ended, from its start to now.

    It is recorded if the workflow's start was.
    """
    attributes = attributes_of(workflow)
    attributes["durable.executions"] = attributes.pop("durable.run")
    attributes["durable.outcome"] = outcome
    origin = Before(parse_trace_context(workflow.trace_context), None)
    start_span = partial(
        tracer.start_span,
        f"durable.workflow {workflow.name}",
        attributes=attributes,
        start_time=workflow.created_at_us * 1000,
    )
    span = origin.start(start_span)
    if outcome != WorkflowState.SUCCESS:
        span.set_status(StatusCode.ERROR)
    span.end()
