"""Tells a request inside another one from a request that a mounted stack sees a second time.

Context variables cannot tell the two apart: a client in the same process, for example
``httpx.ASGITransport(app)``, inherits those of the handler that calls it. The scope can: a
mounted application gets the scope of its request, or a copy of it, while each new request has a
scope of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from asgi_durable.context import current_request
from asgi_durable.engine.runs.frame import current_frame
from asgi_durable.middleware.asgi import ASGIApp, Receive, Scope, Send
from asgi_durable.middleware.problem_context import current_problem_context

__all__ = [
    "REQUEST_KEY",
    "ClaimingApp",
    "is_claimed_by",
    "is_nested_request",
    "without_outer_context",
]

# The key of a scope for its request context, for code that has the scope but not the context
# variables.
REQUEST_KEY = "asgi_durable.request"
# The key of a scope for the engines that have claimed its request.
_CLAIMED_BY = "asgi_durable.claimed_by"

# The current span is not among them: the middleware that opens a span needs the span around it,
# to find out whether that one belongs to the same request.
_VARIABLES: tuple[ContextVar[Any], ...] = (
    current_frame,
    current_problem_context,
    current_request,
)


class ClaimingApp:
    """Marks the scopes of claimed requests, so that stacks inside the app leave these alone.

    Args:
        app: The ASGI app to wrap.
        engine: The engine that has claimed the requests.
    """

    def __init__(self, app: ASGIApp, engine: object) -> None:
        self.app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a claimed request."""
        claimed_by = scope.get(_CLAIMED_BY, ())
        scope[_CLAIMED_BY] = (*claimed_by, self._engine)
        try:
            await self.app(scope, receive, send)
        finally:
            # A caller may use its scope for another request.
            scope[_CLAIMED_BY] = claimed_by


def is_claimed_by(engine: object, scope: Scope) -> bool:
    """Tell whether a stack around this one has claimed the request with this engine."""
    return engine in scope.get(_CLAIMED_BY, ())


def is_nested_request(scope: Scope) -> bool:
    """Tell whether the context variables belong to another request, or to a workflow.

    This is so where a handler, a step or a workflow calls an application in its own process.
    """
    request = current_request.get()
    if request is None:
        if current_frame.get() is None and current_problem_context.get() is None:
            return False
    elif scope.get(REQUEST_KEY) is request:
        return False
    return not scope.get(_CLAIMED_BY)


@contextmanager
def without_outer_context() -> Iterator[None]:
    """Clear the context variables of requests and workflows, in a block."""
    tokens = [(variable, variable.set(None)) for variable in _VARIABLES]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)
