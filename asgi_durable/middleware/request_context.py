"""The request id and other facts of a request, for handlers, steps and logs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from asgi_durable.context import RequestContext, current_request
from asgi_durable.errors import DurableError
from asgi_durable.ids import new_id
from asgi_durable.middleware.asgi import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    make_rereadable,
    replace_header,
)
from asgi_durable.middleware.nested_requests import (
    REQUEST_KEY,
    is_nested_request,
    without_outer_context,
)
from asgi_durable.middleware.problem_details import problem_response, send_problem
from asgi_durable.middleware.request_id_policy import (
    RequestIdPolicy,
    RequestIds,
    checked_header_names,
)
from asgi_durable.telemetry.baggage import baggage_keys as checked_keys
from asgi_durable.telemetry.baggage import format_baggage, parse_baggage
from asgi_durable.telemetry.trace_headers import parse_traceparent, parse_tracestate

__all__ = ["RequestContextMiddleware"]

_TRACE_HEADERS = (b"traceparent", b"tracestate")
_BAGGAGE = b"baggage"
Trace = tuple[str | None, str | None]
_NO_TRACE: Trace = (None, None)
# RFC 6455, section 7.4.1; before the connection is accepted servers respond 403 instead.
_POLICY_VIOLATION, _INTERNAL_ERROR = 1008, 1011


class RequestContextMiddleware:
    """Take the request id from a header, or make one, and send it with every response.

    The app finds the id in the request's header too, also a new one.

    The W3C trace headers are read as well, so that traces continue through a process without
    OpenTelemetry. The result is a ``RequestContext``: code inside the request has it in
    ``asgi_durable.context.current_request`` and in ``scope["asgi_durable.request"]``.

    Args:
        app: The ASGI app to wrap.
        header_names: Headers the id is read from; the first one is also written.
        policy: Where the id comes from, and which ids are accepted.
        baggage_keys: Keys of the W3C ``baggage`` header that are read; none by default.

    Raises:
        ValueError: *header_names* is empty.
        DurableUsageError: *header_names* is a string or has an invalid name, or a key of the
            baggage is invalid.

    Example:
        ``app = RequestContextMiddleware(app, header_names=["X-Request-ID", "X-Correlation-ID"])``
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        header_names: Sequence[str] = ("X-Request-ID",),
        policy: RequestIdPolicy | None = None,
        baggage_keys: Collection[str] = (),
    ) -> None:
        self.app = app
        self._ids = RequestIds(checked_header_names(header_names), policy or RequestIdPolicy())
        self._sent_name = self._ids.read_names[0]
        self._baggage_keys = checked_keys(baggage_keys)
        wanted = {*self._ids.read_names, b"host", *_TRACE_HEADERS}
        self._wanted = frozenset(wanted | {_BAGGAGE} if self._baggage_keys else wanted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if is_nested_request(scope):
            with without_outer_context():
                await self(scope, receive, send)
            return
        make_rereadable(scope)
        found = self._find_headers(scope)
        trace = _trace_of(found) if b"traceparent" in found else _NO_TRACE
        refusal = None
        try:
            request_id = self._ids.find(found, trace[0])
        except DurableError as error:
            request_id, refusal = self._id_of_refusal(), error
        baggage = self._baggage_of(found) if self._baggage_keys else None
        context = _request_context(scope, request_id, found.get(b"host"), trace, baggage)
        sent_value = request_id.encode("ascii")

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = replace_header(message.get("headers", ()), self._sent_name, sent_value)
                message = {**message, "headers": headers}
            await send(message)

        scope[REQUEST_KEY] = context
        # The app and its own request id middlewares read the same id.
        _put_id(scope, found.get(self._sent_name), (self._sent_name, sent_value))
        token = current_request.set(context)
        try:
            if refusal is None:
                await self.app(scope, receive, send_with_id)
            else:
                await _refuse(scope, receive, send_with_id, refusal)
        finally:
            current_request.reset(token)

    def _id_of_refusal(self) -> str:
        try:
            return self._ids.new()
        except DurableError:
            return new_id()

    def _baggage_of(self, found: dict[bytes, list[bytes]]) -> str | None:
        text = b",".join(found.get(_BAGGAGE, ())).decode("latin-1")
        return format_baggage(parse_baggage(text, self._baggage_keys))

    def _find_headers(self, scope: Scope) -> dict[bytes, list[bytes]]:
        """Return the values of the headers that matter, in one pass over all of them."""
        found: dict[bytes, list[bytes]] = {}
        wanted = self._wanted
        for key, value in scope["headers"]:
            name = key.lower()
            if name in wanted:
                found.setdefault(name, []).append(value)
        return found


def _put_id(scope: Scope, sent: list[bytes] | None, line: tuple[bytes, bytes]) -> None:
    """Put the id into the request's headers, unless it is the only one there."""
    if sent is None:
        scope["headers"] = [*scope["headers"], line]
    elif sent != [line[1]]:
        scope["headers"] = replace_header(scope["headers"], *line)


def _request_context(
    scope: Scope,
    request_id: str,
    hosts: list[bytes] | None,
    trace: Trace,
    baggage: str | None,
) -> RequestContext:
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
        traceparent=trace[0],
        tracestate=trace[1],
        baggage=baggage,
    )


def _trace_of(found: dict[bytes, list[bytes]]) -> Trace:
    traces = found[b"traceparent"]
    # Which one of several counts is not defined, so none does.
    traceparent = parse_traceparent(traces[0].decode("latin-1")) if len(traces) == 1 else None
    states = found.get(b"tracestate")
    if traceparent is None or not states:
        return traceparent, None
    return traceparent, parse_tracestate(b",".join(states).decode("latin-1"))


async def _refuse(scope: Scope, receive: Receive, send: Send, error: DurableError) -> None:
    if scope["type"] == "http":
        await send_problem(send, error)
        return
    if (await receive())["type"] != "websocket.connect":
        return
    status, headers, body = problem_response(error)
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        code = _INTERNAL_ERROR if status >= 500 else _POLICY_VIOLATION
        await send({"type": "websocket.close", "code": code})
        return
    start = {"type": "websocket.http.response.start", "status": status}
    await send({**start, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
