"""What is known about the HTTP request being handled."""

from __future__ import annotations

from contextvars import ContextVar

from asgi_durable.fast_dataclass import fast_dataclass

__all__ = ["RequestContext", "current_request"]


@fast_dataclass(kw_only=True)
class RequestContext:
    """The request being handled.

    Attributes:
        request_id: From the client's header, or a new UUID version 7.
        method: HTTP method, for example ``"POST"``; ``"WEBSOCKET"`` for a WebSocket.
        url: Scheme, host and path. Query, user and password are left out: they hold secrets.
        client: Address of the peer, ``None`` where the server knows none.
        traceparent: The W3C header of the trace that the client belongs to, of version 00, to
            hand on where no OpenTelemetry does; ``None`` without one, or if it is malformed.
        tracestate: What belongs to that; ``None`` without it, or if it is malformed.
        baggage: The members of the W3C header ``baggage`` that workflows may keep, to hand on;
            ``None`` without any.
    """

    request_id: str
    method: str
    url: str
    client: str | None
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None

    @property
    def trace_context(self) -> str | None:
        """The trace as a workflow keeps it: with a space between its two parts."""
        if self.traceparent is None or self.tracestate is None:
            return self.traceparent
        return f"{self.traceparent} {self.tracestate}"


current_request: ContextVar[RequestContext | None] = ContextVar(
    "asgi_durable_current_request", default=None
)
