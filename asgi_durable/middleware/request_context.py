"""The request id and what else is known of a request, for handlers, steps and logs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from asgi_durable.context import RequestContext, current_request
from asgi_durable.ids import new_id
from asgi_durable.middleware.asgi import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    replace_header,
)
from asgi_durable.trace_headers import parse_traceparent, parse_tracestate

__all__ = ["RequestContextMiddleware"]

# On bytes, so that only ASCII matches; nothing in it can break a header or a log line.
_VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")
_TRACE_HEADERS = (b"traceparent", b"tracestate")


class RequestContextMiddleware:
    """Take the request id from a header, or make one, and send it back with every answer.

    The W3C headers of a trace are read as well, so that traces go on through a process without
    OpenTelemetry.

    Args:
        app: The ASGI app to wrap.
        header_names: Headers the id is read from; the first one is also written. An id that
            does not match ``[A-Za-z0-9._~+/=:@-]{1,128}`` is replaced by a UUID version 7.

    Raises:
        ValueError: *header_names* is empty.
    """

    def __init__(self, app: ASGIApp, *, header_names: Sequence[str] = ("X-Request-ID",)) -> None:
        if not header_names:
            msg = "header_names must name at least one header"
            raise ValueError(msg)
        self.app = app
        self._read_names = [name.lower().encode("ascii") for name in header_names]
        self._sent_name = self._read_names[0]
        self._wanted = frozenset({*self._read_names, b"host", *_TRACE_HEADERS})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        found = self._find_headers(scope)
        request_id = self._request_id(found)
        sent_value = request_id.encode("ascii")

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = replace_header(message.get("headers", ()), self._sent_name, sent_value)
                message = {**message, "headers": headers}
            await send(message)

        token = current_request.set(_request_context(scope, request_id, found))
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            current_request.reset(token)

    def _find_headers(self, scope: Scope) -> dict[bytes, list[bytes]]:
        """Return the values of the headers that matter, in one pass over all of them."""
        found: dict[bytes, list[bytes]] = {}
        wanted = self._wanted
        for key, value in scope["headers"]:
            name = key.lower()
            if name in wanted:
                found.setdefault(name, []).append(value)
        return found

    def _request_id(self, found: dict[bytes, list[bytes]]) -> str:
        for name in self._read_names:
            for value in found.get(name, ()):
                if _VALID_REQUEST_ID.fullmatch(value):
                    return value.decode("ascii")
        return new_id()


def _request_context(
    scope: Scope, request_id: str, found: dict[bytes, list[bytes]]
) -> RequestContext:
    hosts, traces = found.get(b"host"), found.get(b"traceparent")
    traceparent = tracestate = None
    if traces is not None:
        traceparent, tracestate = _trace_of(traces, found.get(b"tracestate", []))
    if hosts:
        # No user name or password: a client may write them into its Host header.
        host = hosts[0].decode("latin-1").rpartition("@")[2]
    else:
        host = str((scope.get("server") or ("", None))[0])
    client = scope.get("client")
    return RequestContext(
        request_id=request_id,
        method=scope.get("method", "WEBSOCKET"),
        url=f"{scope.get('scheme', 'http')}://{host}{scope.get('path', '')}",
        client=client[0] if client else None,
        traceparent=traceparent,
        tracestate=tracestate,
    )


def _trace_of(traces: list[bytes], states: list[bytes]) -> tuple[str | None, str | None]:
    # Of several nobody knows which one counts.
    traceparent = parse_traceparent(traces[0].decode("latin-1")) if len(traces) == 1 else None
    if traceparent is None or not states:
        return traceparent, None
    return traceparent, parse_tracestate(b",".join(states).decode("latin-1"))
