"""SERVER spans of HTTP requests, by the stable semantic conventions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

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
from asgi_durable.telemetry.observer import current_request_span
from asgi_durable.telemetry.otel.http_attributes import (
    request_attributes,
    route_of,
    without_secrets,
)
from asgi_durable.telemetry.otel.observer import mark_failed, name_of
from asgi_durable.telemetry.otel.request_metrics import RequestTime, RequestTimes

__all__ = ["ServerSpan", "ServerSpans"]

logger = logging.getLogger(__name__)

AttributesHook = Callable[[Mapping[str, Any]], Mapping[str, Any]]
RouteFinder = Callable[[MutableMapping[str, Any]], str | None]
# Where a scope has the span of its request, for stacks that are mounted inside.
_SPAN_KEY = "asgi_durable.span"

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)


class ServerSpans:
    """Opens a span for each request and takes its time, unless somebody does already.

    Args:
        tracer: Makes the spans, ``None`` where there are none.
        times: Takes the times, ``None`` where nobody wants them.
        hook: Returns attributes of the application's own for a request's span, from its scope.
    """

    def __init__(
        self,
        tracer: Tracer | None,
        times: RequestTimes | None = None,
        hook: AttributesHook | None = None,
    ) -> None:
        self._tracer = tracer
        self._times = times
        self._hook = hook
        # The headers of the propagators, and the two that attributes are read from.
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
            return ServerSpan(current, scope["method"], hook=self._hook)
        method, tracer, times = scope["method"], self._tracer, self._times
        known = method if method in _METHODS else "_OTHER"
        request_time = times.begin(scope, known, current) if times is not None else None
        if tracer is None:
            return ServerSpan(None, time=request_time)
        name = known if known is method else "HTTP"
        attributes, parent = self._read(scope, known, around, is_anothers=is_anothers)
        span = scope[_SPAN_KEY] = tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        # With what else the headers have brought, baggage say.
        context = set_span_in_context(span, parent)
        return ServerSpan(span, name, hook=self._hook, context=context, time=request_time)

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
        attributes = request_attributes(scope, method, host)
        if user_agent is not None:
            attributes["user_agent.original"] = user_agent
        # The instrumentation around the application has decided already, and has read the headers.
        is_within = get_current_span(around).get_span_context().is_valid and not is_anothers
        is_first = bool(carrier) and not is_within
        return attributes, extract(carrier, around) if is_first else around


class ServerSpan:
    """The span of one request, the library's or the framework's, and its time.

    Args:
        span: The span, ``None`` if there is none.
        name: Its name as long as the route is not known.
        hook: Returns attributes of the application.
        context: The context with the library's span, ``None`` for the framework's.
        time: Takes the time, ``None`` without a meter, or if an instrumentation takes it.
    """

    __slots__ = (
        "_context_token",
        "_hook",
        "_is_described",
        "_is_open",
        "_is_ours",
        "_is_recorded",
        "_name",
        "_route",
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
        hook: AttributesHook | None = None,
        context: Context | None = None,
        time: RequestTime | None = None,
    ) -> None:
        self._is_ours = context is not None
        self._span = span
        self._name = name
        self._hook = hook
        self._time = time
        self._status: int | None = None
        self._route: str | None = None
        self._is_described = False
        self._is_open = self._is_ours or time is not None
        self._is_recorded = span is not None and span.is_recording()
        self._context_token = attach(context) if context is not None else None
        self._token = current_request_span.set(span if self._is_recorded else None)

    def leave(self) -> None:
        """Let the span be the current one no more."""
        current_request_span.reset(self._token)
        if self._context_token is not None:
            detach(self._context_token)

    def answered(self, status: int) -> None:
        """Set the response's status."""
        self._status = status

    def failed(self, error: Exception) -> None:
        """Take note of what the application has raised."""
        if not self._is_open:
            return
        if self._is_ours and self._is_recorded:
            mark_failed(self._span, error)
        if self._time is not None:
            self._time.failed(name_of(error))

    def describe(
        self, scope: MutableMapping[str, Any], find_route: RouteFinder | None = None
    ) -> None:
        """Set the route and the status of the request, once its response is known.

        Called before the last part of the response is sent: the span of an instrumentation may
        end with it.

        Args:
            scope: The request's scope.
            find_route: Returns the route of a request that no router has seen, for example of a
                replay.
        """
        if self._is_described:
            return
        self._is_described = True
        led_to = route_of(scope)
        self._route = led_to
        if led_to is None and find_route is not None:
            self._route = find_route(scope)
        span = self._span
        if span is None or not self._is_recorded:
            return
        if self._is_ours and self._status is not None:
            span.set_attribute("http.response.status_code", self._status)
            if self._status >= 500:
                span.set_attribute("error.type", str(self._status))
                span.set_status(StatusCode.ERROR)
        # A framework names its own span after the route that it has led the request to.
        if self._route is not None and (self._is_ours or led_to is None):
            span.set_attribute("http.route", self._route)
            span.update_name(f"{self._name} {self._route}")
        if self._hook is not None:
            _call_hook(self._hook, span, scope)

    def end(self, scope: MutableMapping[str, Any], find_route: RouteFinder | None = None) -> None:
        """End a span of ours; it is named after the route that the request was led to."""
        self.describe(scope, find_route)
        if not self._is_open:
            return
        self._is_open = False
        if self._time is not None:
            # While the span is the current one: it is an example of what took so long.
            self._time.end(self._status, self._route)
        if self._is_ours and self._span is not None:
            self._span.end()


def _call_hook(hook: AttributesHook, span: Span, scope: Mapping[str, Any]) -> None:
    try:
        span.set_attributes(hook(scope))
    except Exception:
        logger.warning(
            "Telemetry(request_attributes=...) failed for %s %s; its span goes without them",
            scope["method"],
            scope["path"],
            exc_info=True,
        )


def _enrich(span: Span, scope: Mapping[str, Any]) -> None:
    request, client = current_request.get(), scope.get("client")
    if request is not None:
        span.set_attribute("durable.request.id", request.request_id)
    if client:
        span.set_attribute("client.address", client[0])
    query = scope.get("query_string")
    if query:
        # Other instrumentations leave all but a few secrets in it.
        span.set_attribute("url.query", without_secrets(query.decode("latin-1")))
