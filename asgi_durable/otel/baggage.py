"""The baggage that a workflow keeps, as OpenTelemetry's own."""

from __future__ import annotations

from opentelemetry.baggage import get_baggage, set_baggage
from opentelemetry.context import Context

from asgi_durable.baggage import baggage_of, has_properties, parse_baggage

__all__ = ["with_kept_baggage"]


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
