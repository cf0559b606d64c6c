"""A span for each request, and its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_durable.middleware.asgi import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    header_values,
    make_rereadable,
)
from asgi_durable.middleware.installing.instrumentation import excludes, instrumentations
from asgi_durable.telemetry.config import Telemetry

__all__ = ["TracingMiddleware"]


class TracingMiddleware:
    """Open a SERVER span for each request, or add to the one that is there already.

    It is named ``{method} {route}``, has the attributes of the stable HTTP conventions and the
    request id, goes on with the trace of the request's headers, and ends with the last part of
    the response, its trailers included. Where there is a meter provider its time goes to the
    figure of the conventions, ``http.server.request.duration``, unless a framework or an
    instrumentation around this middleware takes it. Where the application has no OpenTelemetry,
    or has not set a provider before its first request, requests are passed on as they are.

    Args:
        app: The ASGI app to wrap.
        telemetry: Where spans and times go; to the application's own provider by default.
        find_route: Returns the route of a request that no router has seen, as it was refused or
            replayed before; ``None`` where there is none.
        find_stack: Returns what the application's requests come through first: what an
            instrumentation of OpenTelemetry excludes there is excluded here as well.
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

        async def send_and_note(message: Message) -> None:
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
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            span.failed(error)
            raise
        finally:
            span.end(scope, find_route)
            span.leave()

    def _is_excluded(self, scope: Scope) -> bool:
        if self._instrumentations is None:
            # Now: whoever instruments the application may do it after this was made.
            stack = self._find_stack() if self._find_stack is not None else None
            self._instrumentations = list(instrumentations(stack))
        own = self.telemetry.excluded_urls
        if own is None and not self._instrumentations:
            return False
        url = _url_of(scope)
        is_own = own is not None and own.search(url) is not None
        return is_own or any(excludes(found, url) for found in self._instrumentations)


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
