"""Span contexts as a workflow keeps them: W3C ``traceparent``, a space, ``tracestate``."""

from __future__ import annotations

from opentelemetry.baggage import get_baggage, set_baggage
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from asgi_durable.telemetry.baggage import baggage_of, has_properties, parse_baggage, trace_of
from asgi_durable.telemetry.trace_headers import MAX_TRACE_STATE_CHARACTERS, parse_traceparent

__all__ = ["format_trace_context", "parse_trace_context", "with_kept_baggage"]


def format_trace_context(context: SpanContext) -> str | None:
    """Return a span's context as text, ``None`` if it is no span's."""
    if not context.is_valid:
        return None
    sampled = "01" if context.trace_flags & TraceFlags.SAMPLED else "00"
    text = f"00-{context.trace_id:032x}-{context.span_id:016x}-{sampled}"
    state = context.trace_state.to_header() if context.trace_state else ""
    return f"{text} {state}" if 0 < len(state) <= MAX_TRACE_STATE_CHARACTERS else text


def parse_trace_context(text: str | None) -> SpanContext | None:
    """Return the span context of a text, ``None`` for anything else."""
    trace = trace_of(text)
    if trace is None:
        return None
    first, _, state = trace.partition(" ")
    traceparent = parse_traceparent(first)
    if traceparent is None:
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16) & TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([state]) if state else None,
    )


def with_kept_baggage(kept: str | None, context: Context | None) -> Context | None:
    """Return a context with the baggage of a workflow, where that is not there already.

    Args:
        kept: The workflow's trace context, as its row has it.
        context: What is added to; ``None`` for the current one.

    Returns:
        The same *context* if nothing is missing.
    """
    for key, value in parse_baggage(baggage_of(kept)).items():
        found = get_baggage(key, context)
        if found is None or has_properties(found, value):
            context = set_baggage(key, value, context)
    return context
