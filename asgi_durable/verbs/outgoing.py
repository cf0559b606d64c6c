"""Requests to other services: their idempotency keys and trace headers."""

from __future__ import annotations

from collections.abc import Generator, MutableMapping
from typing import Protocol

from asgi_durable.engine.runs.frame import Frame
from asgi_durable.ids import step_key
from asgi_durable.telemetry.current_span import current_span_ids, propagated_headers

__all__ = ["DONE", "OutgoingRequest", "add_key", "add_trace"]

HEADER = "Idempotency-Key"
# The methods that are not idempotent.
METHODS = frozenset({"POST", "PATCH"})


class OutgoingRequest(Protocol):
    """A request that is about to be sent, for example one of httpx."""

    @property
    def method(self) -> str:
        """The HTTP method in upper case."""

    @property
    def headers(self) -> MutableMapping[str, str]:
        """The headers, with case-insensitive names."""


class _Done:
    """An awaitable that is done; unlike a coroutine it need not be awaited."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


DONE = _Done()


def add_key(request: OutgoingRequest, frame: Frame | None) -> None:
    """Add the next key of the current step, if the step is recorded.

    Args:
        request: The request.
        frame: The place of the code that sends it.
    """
    if frame is None or frame.run is None or frame.step_number is None:
        return
    if request.method not in METHODS or HEADER in request.headers:
        return
    key = step_key(frame.run.workflow_id, frame.step_number)
    sent_before = next(frame.outgoing)
    request.headers[HEADER] = f"{key}-{sent_before + 1}" if sent_before else key


def add_trace(request: OutgoingRequest, trace: str | None, baggage: str | None) -> None:
    """Add the headers of a trace, unless the request belongs to a trace already.

    Args:
        request: The request.
        trace: ``traceparent``, and after a space ``tracestate``; used if there is no current span.
        baggage: The header ``baggage``; used if the propagators add none.
    """
    if "traceparent" in request.headers:
        return
    carrier = propagated_headers()
    if trace is not None and current_span_ids() is None:
        carrier["traceparent"], _, state = trace.partition(" ")
        if state:
            carrier["tracestate"] = state
    if baggage is not None:
        carrier.setdefault("baggage", baggage)
    for name, value in carrier.items():
        if name not in request.headers:
            request.headers[name] = value
