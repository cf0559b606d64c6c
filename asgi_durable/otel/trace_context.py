"""Trace contexts as a workflow keeps them: W3C ``traceparent``, a space, ``tracestate``."""

from __future__ import annotations

import re

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

__all__ = ["MAX_TRACE_STATE_CHARACTERS", "format_trace_context", "parse_trace_context"]

# As the specification asks for at least; a longer one is not kept.
MAX_TRACE_STATE_CHARACTERS = 512
_TRACE_CONTEXT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?: (.*))?")


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
    found = _TRACE_CONTEXT.fullmatch(text or "")
    if found is None:
        return None
    trace_id, span_id, flags, state = found.groups()
    context = SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16) & TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([state]) if state else None,
    )
    return context if context.is_valid else None
