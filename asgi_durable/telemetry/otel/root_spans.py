"""Spans of workflows without a caller: roots, or part of the trace of the workflow's start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    set_span_in_context,
)

from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.telemetry.otel.trace_context import parse_trace_context

__all__ = ["Before", "before"]


@dataclass(frozen=True, slots=True)
class Before:
    """The spans before an execution.

    Attributes:
        origin: The span in which the workflow was started.
        previous: The span of the execution before.
    """

    origin: SpanContext | None
    previous: SpanContext | None

    def links(self, parent_id: int = 0) -> list[Link]:
        """Return the links to these spans; none to the origin if that is the parent itself."""
        named = (("origin", self.origin), ("previous", self.previous))
        return [
            Link(context, {"durable.link": name})
            for name, context in named
            if context is not None and not (name == "origin" and context.span_id == parent_id)
        ]

    def start(
        self,
        start_span: Callable[..., Span],
        *,
        is_root: bool = True,
        context: Context | None = None,
    ) -> Span:
        """Start a root span that is linked to these spans; it is recorded if they were.

        Args:
            start_span: A tracer's method, with all arguments but ``context`` and ``links``.
            is_root: False if the span continues the origin's trace instead.
            context: The context to add the span to; the current one by default.
        """
        anchor = self.origin or self.previous
        if anchor is not None and not anchor.trace_flags.sampled:
            return NonRecordingSpan(anchor)
        if anchor is None or is_root:
            no_parent = set_span_in_context(INVALID_SPAN, context)
            span = start_span(context=no_parent, links=self.links())
            if anchor is None or span.is_recording():
                return span
            # The sampler would drop a new trace. It has decided to record the origin's trace.
        within = set_span_in_context(NonRecordingSpan(anchor), context)
        return start_span(context=within, links=self.links(anchor.span_id))


def before(workflow: WorkflowRecord) -> Before:
    """Return the spans of a workflow's past, as its row names them."""
    return Before(
        parse_trace_context(workflow.trace_context), parse_trace_context(workflow.last_span)
    )
