"""SERVER spans of HTTP requests, by the stable semantic conventions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import Token
from typing import Any
from urllib.parse import parse_qsl, urlencode

from opentelemetry.context import Context, attach, detach
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
from asgi_durable.otel.observer import mark_failed
from asgi_durable.telemetry_port import current_request_span

__all__ = ["ServerSpan", "ServerSpans"]

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_PORTS = {"http": 80, "https": 443}
_NO_HEADERS = ("", "")
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
    """Opens a span for each request, unless somebody has opened one already."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        # The headers that say where a trace goes on, and the two that attributes are read from.
        fields = get_global_textmap().fields
        self._context_headers = {name.lower().encode("latin-1"): name for name in fields}

    def begin(self, scope: Mapping[str, Any]) -> ServerSpan:
        """Return the request's span, which is the current one from now on."""
        current = get_current_span()
        if current.is_recording() and getattr(current, "kind", None) is SpanKind.SERVER:
            _enrich(current, scope)
            return ServerSpan(current, "", is_ours=False)
        carrier, host, user_agent = self._read_headers(scope["headers"])
        # What is opened around us has decided already, and has read the headers.
        is_first = bool(carrier) and not current.get_span_context().is_valid
        method = scope["method"]
        known = method if method in _METHODS else "_OTHER"
        attributes = _attributes(scope, known, host)
        if user_agent is not None:
            attributes["user_agent.original"] = user_agent
        name = known if known is method else "HTTP"
        span = self._tracer.start_span(
            name,
            context=extract(carrier, Context()) if is_first else None,
            kind=SpanKind.SERVER,
            attributes=attributes,
        )
        return ServerSpan(span, name, is_ours=True)

    def _read_headers(
        self, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[dict[str, str], str | None, str | None]:
        carrier: dict[str, str] = {}
        host = user_agent = None
        for key, value in headers:
            if key == b"host":
                host = value.decode("latin-1")
            elif key == b"user-agent":
                user_agent = value.decode("latin-1")
            elif key in self._context_headers:
                carrier[self._context_headers[key]] = value.decode("latin-1")
        return carrier, host, user_agent


class ServerSpan:
    """The span of one request, ours or the framework's."""

    __slots__ = (
        "_context_token",
        "_is_open",
        "_is_recorded",
        "_method",
        "_span",
        "_status",
        "_token",
    )

    def __init__(self, span: Span, method: str, *, is_ours: bool) -> None:
        self._span = span
        self._method = method
        self._is_open = is_ours
        self._is_recorded = span.is_recording()
        self._status: int | None = None
        self._context_token: Token[Context] | None = None
        if is_ours:
            self._context_token = attach(set_span_in_context(span))
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
        if self._is_open and self._is_recorded:
            mark_failed(self._span, error)

    def end(self, scope: Mapping[str, Any]) -> None:
        """End a span of ours; it is named after the route that the request was led to."""
        if not self._is_open:
            return
        self._is_open = False
        if self._is_recorded:
            self._describe(scope)
        self._span.end()

    def _describe(self, scope: Mapping[str, Any]) -> None:
        span, status = self._span, self._status
        if status is not None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(StatusCode.ERROR)
        route = _route_of(scope)
        if route is not None:
            span.set_attribute("http.route", route)
            span.update_name(f"{self._method} {route}")


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
