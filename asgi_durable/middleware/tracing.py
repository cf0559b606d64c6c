"""A span and a duration metric for each request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from asgi_durable.log_context import DurableLogFilter
from asgi_durable.middleware.asgi import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    header_values,
    make_rereadable,
)
from asgi_durable.telemetry.config import Telemetry

__all__ = ["TracingMiddleware", "instrumentations"]

# By name, as the library does not depend on it. Subclasses count as well.
_INSTRUMENTATION = "opentelemetry.instrumentation.asgi.OpenTelemetryMiddleware"
# An object with a dynamic `app` attribute may be nested without an end.
_MAX_DEPTH = 1000


class TracingMiddleware:
    """Open a SERVER span for each request, or add to the span that is open already.

    The span is named ``{method} {route}``, has the attributes of the stable HTTP conventions and
    the request id, continues the trace of the request's headers, and ends with the last part of
    the response, its trailers included. With a meter provider the request's duration in seconds
    goes to the metric ``http.server.request.duration``, unless a framework or an instrumentation
    around this middleware measures it. Where the application has no OpenTelemetry, or has set no
    provider before its first request, requests pass unchanged.

    Args:
        app: The ASGI app to wrap.
        telemetry: Where spans and durations go; to the application's own providers by default.
        find_route: Returns the route of a request that no router has seen, because it was
            refused or replayed before; ``None`` where no route fits.
        find_stack: Returns the outermost middleware of the application. URLs that an
            instrumentation of OpenTelemetry in this stack excludes are excluded here as well.

    Example:
        ``app = TracingMiddleware(app, telemetry=Telemetry(excluded_urls=["/health"]))``
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        telemetry: Telemetry | None = None,
        find_route: Callable[[Scope], str | None] | None = None,
        find_stack: Callable[[], Any] | None = None,
    ) -> None:
        self.app = app
        self.telemetry = telemetry or Telemetry()
        self.telemetry.filter_exported_logs(DurableLogFilter())
        self._find_route = find_route
        self._find_stack = find_stack
        self._instrumentations: list[Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        spans = self.telemetry.server_spans if scope["type"] == "http" else None
        if spans is not None:
            make_rereadable(scope)
        if spans is None or self._is_excluded(scope):
            await self.app(scope, receive, send)
            return
        span, find_route = spans.begin(scope), self._find_route
        has_trailers = False

        async def send_observed(message: Message) -> None:
            nonlocal has_trailers
            if message["type"] == "http.response.start":
                span.answered(message["status"])
                has_trailers = message.get("trailers", False)
                await send(message)
            elif _is_last(message, has_trailers=has_trailers):
                span.describe(scope, find_route)
                await send(message)
                span.end(scope, find_route)
            else:
                await send(message)

        try:
            await self.app(scope, receive, send_observed)
        except Exception as error:
            span.failed(error)
            raise
        finally:
            span.end(scope, find_route)
            span.leave()

    def _is_excluded(self, scope: Scope) -> bool:
        if self._instrumentations is None:
            # Not before the first request: an application may be instrumented until then.
            stack = self._find_stack() if self._find_stack is not None else None
            self._instrumentations = list(instrumentations(stack))
        own = self.telemetry.excluded_urls
        if own is None and not self._instrumentations:
            return False
        url = _url_of(scope)
        is_own = own is not None and own.search(url) is not None
        return is_own or any(_excludes(found, url) for found in self._instrumentations)


def instrumentations(stack: Any) -> Iterator[Any]:
    """Yield the middlewares of OpenTelemetry in a stack, the outermost first.

    The stack is followed as long as each middleware has the app that it wraps as ``app``.
    """
    for _ in range(_MAX_DEPTH):
        if stack is None:
            return
        names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(stack).__mro__)
        if _INSTRUMENTATION in names:
            yield stack
        stack = getattr(stack, "app", None)


def _excludes(instrumentation: Any, url: str) -> bool:
    """Tell whether an instrumentation ignores a URL."""
    excluded = getattr(instrumentation, "excluded_urls", None)
    is_disabled = getattr(excluded, "url_disabled", None)
    return is_disabled is not None and bool(is_disabled(url))


def _is_last(message: Message, *, has_trailers: bool) -> bool:
    """Tell whether a message is the last one of a response."""
    match message["type"]:
        case "http.response.body":
            return not (has_trailers or message.get("more_body", False))
        case "http.response.pathsend":
            return not has_trailers
        case "http.response.trailers":
            return not message.get("more_trailers", False)
    return False


def _url_of(scope: Scope) -> str:
    hosts = header_values(scope["headers"], b"host")
    host = hosts[0].decode("latin-1") if hosts else (scope.get("server") or ("",))[0]
    return f"{scope.get('scheme', 'http')}://{host}{scope['path']}"
