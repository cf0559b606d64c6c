"""What is known about the HTTP request being handled."""

from __future__ import annotations

from contextvars import ContextVar

from asgi_durable.value_class import value_class

__all__ = ["RequestContext", "current_request"]


@value_class(kw_only=True)
class RequestContext:
    """The request being handled.

    Attributes:
        request_id: From the client's header, or a new UUID version 7.
        method: HTTP method, for example ``"POST"``; ``"WEBSOCKET"`` for a WebSocket.
        url: Scheme, host and path. Query, user and password are left out: they hold secrets.
        client: Address of the peer, ``None`` where the server knows none.
    """

    request_id: str
    method: str
    url: str
    client: str | None


current_request: ContextVar[RequestContext | None] = ContextVar(
    "asgi_durable_current_request", default=None
)
