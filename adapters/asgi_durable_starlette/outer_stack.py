"""Puts the outer part of the stack around an application's middlewares."""

from __future__ import annotations

from collections.abc import Callable

from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_durable.middleware.tracing import instrumentations

__all__ = ["wrap_stack"]


def wrap_stack(stack: ASGIApp, wrap: Callable[[ASGIApp], ASGIApp]) -> ASGIApp:
    """Put the outer part of the stack around an application's middlewares.

    Where OpenTelemetry's instrumentation of FastAPI is around them already, the part goes inside
    it: the instrumentation opens the request's span, and ours are below it.

    Args:
        stack: The middlewares, as Starlette has built them.
        wrap: Puts the outer part around an app.
    """
    for instrumentation in instrumentations(stack):
        if isinstance(instrumentation.app, ServerErrorMiddleware):
            instrumentation.app = wrap(instrumentation.app)
            return stack
    return _Outermost(wrap(stack))


class _Outermost(ServerErrorMiddleware):
    """Calls the stack and handles no errors: Starlette's own middleware inside it does.

    OpenTelemetry's instrumentation of FastAPI wraps the outermost middleware, and only one of
    this class.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
