"""Requests that are sent to others: their idempotency keys, and the trace they belong to."""

from __future__ import annotations

import sys
from collections.abc import Generator, MutableMapping
from typing import Protocol

from asgi_durable.engine.runs.frame import Frame
from asgi_durable.ids import step_key

__all__ = ["DONE", "OutgoingRequest", "add_key", "add_trace"]

HEADER = "Idempotency-Key"
# Those that do something twice if they are sent twice.
METHODS = frozenset({"POST", "PATCH"})


class OutgoingRequest(Protocol):
    """A client's request that is about to be sent, as of httpx."""

    @property
    def method(self) -> str:
        """In upper case."""

    @property
    def headers(self) -> MutableMapping[str, str]:
        """Found by name, whatever its case."""


class _Done:
    """Nothing to wait for; unlike a coroutine it need not be awaited."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


DONE = _Done()


def add_key(request: OutgoingRequest, frame: Frame | None) -> None:
    """Give a request of a step that has a place in a log the step's next key."""
    if frame is None or frame.run is None or frame.step_number is None:
        return
    if request.method not in METHODS or HEADER in request.headers:
        return
    key = step_key(frame.run.workflow_id, frame.step_number)
    earlier = next(frame.outgoing)
    request.headers[HEADER] = f"{key}-{earlier + 1}" if earlier else key


def add_trace(request: OutgoingRequest, trace: str | None, baggage: str | None) -> None:
    """Give a request the headers of a trace, unless it is in one already.

    Args:
        request: What is sent.
        trace: ``traceparent``, and after a space ``tracestate``, where there is no span.
        baggage: Where OpenTelemetry sends none.
    """
    if "traceparent" in request.headers:
        return
    carrier: dict[str, str] = {}
    if "opentelemetry.propagate" in sys.modules:
        sys.modules["opentelemetry.propagate"].inject(carrier)
    if trace is not None and not _is_in_span():
        carrier["traceparent"], _, state = trace.partition(" ")
        if state:
            carrier["tracestate"] = state
    if baggage is not None:
        carrier.setdefault("baggage", baggage)
    for name, value in carrier.items():
        if name not in request.headers:
            request.headers[name] = value


def _is_in_span() -> bool:
    # Without the API there is no current span.
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and trace.get_current_span().get_span_context().is_valid
