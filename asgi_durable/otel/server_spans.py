"""SERVER spans of HTTP requests, by the stable semantic conventions."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.propagate import extract, get_global_textmap
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from asgi_durable.context import current_request
from asgi_durable.otel.observer import mark_failed, name_of
from asgi_durable.otel.request_times import RequestTime, RequestTimes
from asgi_durable.telemetry_port import current_request_span

__all__ = ["ServerSpan", "ServerSpans"]

# Where a scope has the span of its request, for stacks that are mounted inside.
_SPAN_KEY = "asgi_durable.span"

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_PORTS = {"http": 80, "https": 443}
# Query parameters whose values are secrets, in lower case.
SECRET_PARAMETERS = frozenset(
    {
        "access_token",
        "api_key",
        "apikey",
        "awsaccesskeyid",
        "code",
        "id_token",
        "key",
        "password",
        "refresh_token",
        "secret",
        "sig",
        "signature",
        "token",
        "x-amz-credential",
        "x-amz-security-token",
        "x-amz-signature",
        "x-goog-signature",
    }
)


class ServerSpans:
    """Opens a span for each request and takes its time, unless somebody does already.

    Args:
        tracer: Makes the spans, ``None`` where there are none.
        times: Takes the times, ``None`` where nobody wants them.
    """

    def __init__(self, tracer: Tracer | None, times: RequestTimes | None = None) -> None:
        self._tracer = tracer
        self._times = times
        # The headers that say where a trace goes on, and the two that attributes are read from.
        fields = get_global_textmap().fields
        self._context_headers = {name.lower().encode("latin-1"): name for name in fields}
        self._wanted = frozenset({b"host", b"user-agent", *self._context_headers})

    def begin(self, scope: MutableMapping[str, Any]) -> ServerSpan:
        """Return the request's span, which is the current one from now on."""
        # Looked up once, and handed on: the API looks it up in each of its functions else.
        around = get_current()
        current = get_current_span(around)
        # A client in this process is called in the span of the request that calls it.
        is_anothers = current is current_request_span.get() is not scope.get(_SPAN_KEY)
        is_servers = getattr(current, "kind", None) is SpanKind.SERVER
        if current.is_recording() and is_servers and not is_anothers:
            _enrich(current, scope)
            scope[_SPAN_KEY] = current
            return ServerSpan(current)
        method, tracer, times = scope["method"], self._tracer, self._times
        known = method if method in _METHODS else "_OTHER"
        request_time = times.begin(scope, known, current) if times is not None else None
        if tracer is None:
            return ServerSpan(None, time=request_time)
        name = known if known is method else "HTTP"
        attributes, parent = self._read(scope, known, around, is_anothers=is_anothers)
        span = scope[_SPAN_KEY] = tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        # With what else the headers have brought, baggage say.
        return ServerSpan(span, name, context=set_span_in_context(span, parent), time=request_time)

    def _read(
        self, scope: Mapping[str, Any], method: str, around: Context, *, is_anothers: bool
    ) -> tuple[dict[str, Any], Context]:
        """Return a span's attributes, and where it belongs: its headers may say that."""
        carrier: dict[str, str] = {}
        host = user_agent = None
        wanted = self._wanted
        for key, value in scope["headers"]:
            if key in wanted:
                text = value.decode("latin-1")
                if key == b"host":
                    host = text
                elif key == b"user-agent":
                    user_agent = text
                else:
                    carrier[self._context_headers[key]] = text
        attributes = _attributes(scope, method, host)
        if user_agent is not None:
            attributes["user_agent.original"] = user_agent
        # What is opened around us has decided already, and has read the headers.
        is_within = get_current_span(around).get_span_context().is_valid and not is_anothers
        is_first = bool(carrier) and not is_within
        return attributes, extract(carrier, around) if is_first else around


class ServerSpan:
    """The span of one request, ours or the framework's, and its time.

    Args:
        span: The span, ``None`` where there is none.
        name: What our own is called as long as its route is not known; empty for theirs.
        context: The one in which our own is the current span, ``None`` for theirs.
        time: Takes the time, ``None`` where nobody wants it, or somebody else takes it.
    """

    __slots__ = (
        "_context_token",
        "_is_open",
        "_is_recorded",
        "_name",
        "_span",
        "_status",
        "_time",
        "_token",
    )

    def __init__(
        self,
        span: Span | None,
        name: str = "",
        *,
        context: Context | None = None,
        time: RequestTime | None = None,
    ) -> None:
        is_ours = context is not None
        self._span = span if is_ours else None
        self._name = name
        self._time = time
        self._status: int | None = None
        self._is_open = is_ours or time is not None
        self._is_recorded = span is not None and span.is_recording()
        self._context_token = attach(context) if context is not None else None
        self._token = current_request_span.set(span if self._is_recorded else None)

    def leave(self) -> None:
        """Let the span be the current one no more."""
        current_request_span.reset(self._token)
        if self._context_token is not None:
            detach(self._context_token)

    def answered(self, status: int) -> None:
        """Take note of the answer's status."""
        self._status = status

    def failed(self, error: Exception) -> None:
        """Take note of what the application has raised."""
        if not self._is_open:
            return
        if self._is_recorded:
            mark_failed(self._span, error)
        if self._time is not None:
            self._time.failed(name_of(error))

    def end(self, scope: Mapping[str, Any]) -> None:
        """End a span of ours; it is named after the route that the request was led to."""
        if not self._is_open:
            return
        self._is_open = False
        if self._time is not None:
            # While the span is the current one: it is an example of what took so long.
            self._time.end(self._status, _route_of(scope))
        span = self._span
        if span is not None:
            if self._is_recorded:
                self._describe(span, _route_of(scope))
            span.end()

    def _describe(self, span: Span, route: str | None) -> None:
        status = self._status
        if status is not None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(StatusCode.ERROR)
        if route is not None:
            span.set_attribute("http.route", route)
            span.update_name(f"{self._name} {route}")


def _enrich(span: Span, scope: Mapping[str, Any]) -> None:
    request, client = current_request.get(), scope.get("client")
    if request is not None:
        span.set_attribute("durable.request.id", request.request_id)
    if client:
        span.set_attribute("client.address", client[0])
    query = scope.get("query_string")
    if query:
        # Other instrumentations leave all but a few secrets in it.
        span.set_attribute("url.query", _without_secrets(query.decode("latin-1")))


def _attributes(scope: Mapping[str, Any], method: str, host: str | None) -> dict[str, Any]:
    scheme = scope.get("scheme", "http")
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scheme,
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method == "_OTHER":
        attributes["http.request.method_original"] = scope["method"]
    query = scope.get("query_string")
    if query:
        attributes["url.query"] = _without_secrets(query.decode("latin-1"))
    address, port = _split_host(host) if host else scope.get("server") or (None, None)
    if address:
        attributes["server.address"] = address
        attributes["server.port"] = port or _PORTS.get(scheme, 0)
    client = scope.get("client")
    if client:
        attributes["client.address"] = client[0]
    request = current_request.get()
    if request is not None:
        attributes["durable.request.id"] = request.request_id
    return attributes


def _split_host(host: str) -> tuple[str, int | None]:
    """Return what a Host header names, without the user that a client may write into it."""
    host = host.rpartition("@")[2]
    address, _, port = host.rpartition(":")
    if address and port.isdecimal() and len(port) <= 5:
        return address, int(port)
    return host, None


def _without_secrets(query: str) -> str:
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode(
        [(key, "REDACTED" if key.lower() in SECRET_PARAMETERS else value) for key, value in pairs]
    )


def _route_of(scope: Mapping[str, Any]) -> str | None:
    """Return the pattern that a request's path has matched, where the framework tells."""
    template = scope.get("path_template")
    if template:
        return str(template)
    within = scope.get("fastapi")
    found = within.get("effective_route_context") if isinstance(within, dict) else None
    route = found or scope.get("route")
    path = getattr(route, "path_format", None)
    if not isinstance(path, str):
        return None
    # Of a mounted application the path begins after where it is mounted.
    is_mount = hasattr(route, "app") and getattr(route, "endpoint", None) is None
    return str(scope.get("root_path", "")) + ("/{path}" if is_mount else path)
