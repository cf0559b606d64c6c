"""Spans of workflows that nobody calls: roots, or in the trace of the workflow's start."""

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
    """What was before an execution.

    Attributes:
        origin: The span in which the workflow was started.
        previous: That of the execution before.
    """

    origin: SpanContext | None
    previous: SpanContext | None

    def links(self, parent_id: int = 0) -> list[Link]:
        """Return the links to it; none to the origin where that is the parent itself."""
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
        """Start a root that is linked to it; recorded if that was.

        Args:
            start_span: A tracer's, with all arguments but ``context`` and ``links``.
            is_root: False if it goes on in the origin's trace instead.
            context: What else is in the span's context; the current one by default.
        """
        anchor = self.origin or self.previous
        if anchor is not None and not anchor.trace_flags.sampled:
            return NonRecordingSpan(anchor)
        if anchor is None or is_root:
            nobody = set_span_in_context(INVALID_SPAN, context)
            span = start_span(context=nobody, links=self.links())
            if anchor is None or span.is_recording():
                return span
            # The sampler would drop a new trace. In its origin's it has decided to record.
        within = set_span_in_context(NonRecordingSpan(anchor), context)
        return start_span(context=within, links=self.links(anchor.span_id))


def before(workflow: WorkflowRecord) -> Before:
    """Return what its row tells of a workflow's past."""
    return Before(
        parse_trace_context(workflow.trace_context), parse_trace_context(workflow.last_span)
    )
