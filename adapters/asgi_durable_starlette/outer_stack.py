"""What goes around all of an application's middlewares, beside OpenTelemetry's instrumentation."""

from __future__ import annotations

from collections.abc import Callable

from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_durable.middleware.installing.instrumentation import instrumentations

__all__ = ["wrap_stack"]


def wrap_stack(stack: ASGIApp, wrap: Callable[[ASGIApp], ASGIApp]) -> ASGIApp:
    """Put the outer part of the stack around an application's middlewares.

    Where FastAPI's instrumentation is around them already, inside of that: its span is the
    request's, and ours are below it.

    Args:
        stack: The middlewares, as Starlette has built them.
        wrap: Puts our part around an app.
    """
    for instrumentation in instrumentations(stack):
        if isinstance(instrumentation.app, ServerErrorMiddleware):
            instrumentation.app = wrap(instrumentation.app)
            return stack
    return _Outermost(wrap(stack))


class _Outermost(ServerErrorMiddleware):
    """Calls the stack, and handles no errors: Starlette's own middleware inside of it does.

    FastAPI's instrumentation goes around the outermost middleware, and only where that is of
    this class.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
