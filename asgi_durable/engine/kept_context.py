"""What a new workflow keeps of the trace, and of the baggage, that it belongs to."""

from __future__ import annotations

from asgi_durable.baggage import (
    baggage_of,
    current_members,
    format_baggage,
    has_properties,
    parse_baggage,
    trace_of,
    with_baggage,
)
from asgi_durable.context import current_request
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.telemetry_port import TelemetrySource

__all__ = ["kept_context"]


def kept_context(telemetry: TelemetrySource, caller: WorkflowRecord | None = None) -> str | None:
    """Return the trace context of the current code, as a row has it.

    Args:
        telemetry: Tells the trace, and which members of the baggage are kept.
        caller: The workflow that the new one belongs to, which may go on without its request.
    """
    trace = telemetry.observer.trace_context()
    if trace is None and caller is not None:
        trace = trace_of(caller.trace_context)
    keys = telemetry.baggage_keys
    if not keys:
        return trace
    if caller is not None:
        inherited = baggage_of(caller.trace_context)
    else:
        request = current_request.get()
        inherited = request.baggage if request is not None else None
    # What the application has changed on the way counts.
    members = parse_baggage(inherited, keys)
    changed = {
        key: value
        for key, value in current_members(keys).items()
        if key not in members or not has_properties(value, members[key])
    }
    return with_baggage(trace, format_baggage(members | changed))
