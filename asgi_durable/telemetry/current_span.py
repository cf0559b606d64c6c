"""OpenTelemetry's current span: for log records, and for requests to other services."""

from __future__ import annotations

from importlib import import_module

from opentelemetry.context import get_current
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

__all__ = ["current_span_ids", "propagated_headers"]

_PROPAGATE = "opentelemetry.propagate"


def current_span_ids() -> tuple[str, str] | None:
    """Return the trace id and the span id of the current span; ``None`` if there is no span."""
    current = get_current()
    # It is empty in an application without spans, where this costs each log record 0.1 us.
    if not current:
        return None
    context = get_current_span(current).get_span_context()
    if not context.is_valid:
        return None
    return format_trace_id(context.trace_id), format_span_id(context.span_id)


def propagated_headers() -> dict[str, str]:
    """Return the headers that the application's propagators add to an outgoing request."""
    headers: dict[str, str] = {}
    # Propagators write what is in the context, so an empty one needs none of them. To load them
    # fails if the environment names one that is not installed, which is no matter without spans.
    if get_current():
        import_module(_PROPAGATE).inject(headers)
    return headers
