"""Traces as workflows store them, and as OpenTelemetry has them.

The text of a trace is its W3C ``traceparent``, and after a space its ``tracestate`` if it has one.
"""

from __future__ import annotations

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from asgi_durable.telemetry.baggage import baggage_of, has_properties, parse_baggage, trace_of
from asgi_durable.telemetry.trace_headers import MAX_TRACE_STATE_CHARACTERS, parse_traceparent

__all__ = [
    "format_trace_context",
    "parse_trace_context",
    "with_stored_baggage",
]


def format_trace_context(context: SpanContext) -> str | None:
    """Return the text of a span's context, ``None`` if it belongs to no span."""
    if not context.is_valid:
        return None
    sampled = "01" if context.trace_flags & TraceFlags.SAMPLED else "00"
    text = f"00-{context.trace_id:032x}-{context.span_id:016x}-{sampled}"
    state = context.trace_state.to_header() if context.trace_state else ""
    return f"{text} {state}" if 0 < len(state) <= MAX_TRACE_STATE_CHARACTERS else text


def parse_trace_context(text: str | None) -> SpanContext | None:
    """Return the span context of a stored trace, ``None`` if the text is none."""
    stored = trace_of(text)
    if stored is None:
        return None
    first, _, state = stored.partition(" ")
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


def with_stored_baggage(stored: str | None, context: Context | None) -> Context | None:
    """Return a context with the baggage of a workflow, as far as it does not have it already.

    Args:
        stored: The workflow's trace context, as its row has it.
        context: The context to add to; ``None`` for the current one.

    Returns:
        The same *context* if nothing is missing.
    """
    for key, value in parse_baggage(baggage_of(stored)).items():
        found = baggage.get_baggage(key, context)
        if found is None or has_properties(found, value):
            context = baggage.set_baggage(key, value, context)
    return context
