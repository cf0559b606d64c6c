"""A span for each request, and its time."""

from __future__ import annotations

from asgi_durable.middleware.asgi import ASGIApp, Message, Receive, Scope, Send, make_rereadable
from asgi_durable.telemetry import Telemetry

__all__ = ["TracingMiddleware"]


class TracingMiddleware:
    """Open a SERVER span for each request, or add to the one that is there already.

    It is named ``{method} {route}``, has the attributes of the stable HTTP conventions and the
    request id, goes on with the trace of the request's headers, and ends with the last piece of
    the answer. Where there is a meter provider its time goes to the figure of the conventions,
    ``http.server.request.duration``, unless a framework or an instrumentation around this
    middleware takes it. Where the application has no OpenTelemetry, or has not set a provider
    before its first request, requests are passed on as they are.

    Args:
        app: The ASGI app to wrap.
        telemetry: Where spans and times go; to the application's own provider by default.
    """

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry | None = None) -> None:
        self.app = app
        self.telemetry = telemetry or Telemetry()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        spans = self.telemetry.server_spans if scope["type"] == "http" else None
        if spans is None:
            await self.app(scope, receive, send)
            return
        make_rereadable(scope)
        span = spans.begin(scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.answered(message["status"])
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                span.end(scope)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            span.failed(error)
            raise
        finally:
            span.end(scope)
            span.leave()
