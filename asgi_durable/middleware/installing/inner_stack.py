"""Serves requests inside the span that an application opens around its own middlewares."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asgi_durable.errors import DurableUsageError
from asgi_durable.middleware.asgi import ASGIApp, Receive, Scope, Send

__all__ = ["InnerStack", "opens_a_span"]

# The key of a scope for the object whose stack is to serve the request.
_OWNER_KEY = "asgi_durable.inside"


def opens_a_span(app: Any) -> bool:
    """Tell whether an application opens a span around its middlewares: FastAPI from 0.165 on.

    It is recognised by its attributes and parameters, as the core loads no framework.
    """
    if not callable(getattr(app, "build_middleware_stack", None)):
        return False
    return hasattr(app, "middleware_stack") and any(
        "telemetry" in inspect.signature(vars(kind)["__init__"]).parameters
        for kind in type(app).__mro__
        if "__init__" in vars(kind) and kind is not object
    )


class InnerStack:
    """An application with a stack around its middlewares, and its own span around both.

    So each request has one span, and the spans of the stack are below it. The application's
    behaviour stays the same: requests that do not go through this object never meet the stack.

    Args:
        app: An application that :func:`opens_a_span`.
        surround: Puts the stack around an app.
    """

    def __init__(self, app: Any, surround: Callable[[ASGIApp], ASGIApp]) -> None:
        self.app = app
        self._stack = surround(self._serve_rest)
        build, built = app.build_middleware_stack, app.middleware_stack

        def build_and_split() -> ASGIApp:
            return self._split(build())

        app.build_middleware_stack = build_and_split
        if built is not None:
            app.middleware_stack = self._split(built)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request.

        Raises:
            DurableUsageError: The request has not passed through the stack.
        """
        scope[_OWNER_KEY] = self
        await self.app(scope, receive, send)
        if scope.pop(_OWNER_KEY, None) is self:
            msg = "the application's middlewares were built anew, without what wrap() put in"
            raise DurableUsageError(msg)

    def _split(self, rest: ASGIApp) -> ASGIApp:
        self._rest = rest
        return _Split(rest, self, self._stack)

    async def _serve_rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._rest(scope, receive, send)


class _Split:
    """Leads the requests of one owner through its stack, and all others past it.

    Attributes:
        app: The next app inside, where instrumentations look for their own middlewares.
    """

    def __init__(self, app: ASGIApp, owner: InnerStack, stack: ASGIApp) -> None:
        self.app = app
        self._owner = owner
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get(_OWNER_KEY) is not self._owner:
            await self.app(scope, receive, send)
            return
        # The mark is not for applications that are mounted inside.
        del scope[_OWNER_KEY]
        await self._stack(scope, receive, send)
