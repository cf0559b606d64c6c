"""The HTTP request that the current code handles."""

from __future__ import annotations

from contextvars import ContextVar

from asgi_durable.fast_dataclass import fast_dataclass

__all__ = ["RequestContext", "current_request"]


@fast_dataclass(kw_only=True)
class RequestContext:
    """The request that the current code handles.

    Attributes:
        request_id: The id from the client's header, or a new UUID version 7.
        method: HTTP method, for example ``"POST"``; ``"WEBSOCKET"`` for a WebSocket.
        url: Scheme, host and path. Query, user and password are left out, as they hold secrets.
        client: IP address of the peer, ``None`` if the server knows none.
        traceparent: The W3C header of the client's trace, in version 00, to pass on where
            OpenTelemetry does not; ``None`` if it is missing or malformed.
        tracestate: The W3C header ``tracestate`` that belongs to it; ``None`` if it is missing or
            malformed.
        baggage: The members of the W3C header ``baggage`` that workflows may store, to pass on;
            ``None`` if there are none.
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
        """The trace as a workflow stores it: both headers with a space between them."""
        if self.traceparent is None or self.tracestate is None:
            return self.traceparent
        return f"{self.traceparent} {self.tracestate}"


current_request: ContextVar[RequestContext | None] = ContextVar(
    "asgi_durable_current_request", default=None
)
