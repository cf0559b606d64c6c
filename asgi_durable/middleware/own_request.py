"""Telling a request of its own from one that a mounted stack sees a second time.

Context variables cannot tell: a client in the same process (``httpx.ASGITransport(app)``) that a
handler calls inherits them. The scope can: a mounted application gets the scope of its request,
or a copy, while each new request has a scope of its own.
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

__all__ = ["REQUEST_KEY", "ClaimingApp", "is_claimed_by", "is_inside_another", "outside_of_all"]

# Where a scope has its context, for code that has the scope and no context variables.
REQUEST_KEY = "asgi_durable.request"
# Where a scope names the engines that have claimed its request.
_CLAIMED_BY = "asgi_durable.claimed_by"

# Not the span: who opens one needs the span around it, to tell whose that is.
_PLACES: tuple[ContextVar[Any], ...] = (current_frame, current_problem_context, current_request)


class ClaimingApp:
    """An app whose requests are claimed; stacks inside of it find that in the scope.

    Args:
        app: The app.
        engine: What has claimed its requests.
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


def is_inside_another(scope: Scope) -> bool:
    """Tell whether the context variables are those of another request, or of a workflow.

    They are where a handler, a step or a workflow calls an application in its own process.
    """
    request = current_request.get()
    if request is None:
        if current_frame.get() is None and current_problem_context.get() is None:
            return False
    elif scope.get(REQUEST_KEY) is request:
        return False
    return not scope.get(_CLAIMED_BY)


@contextmanager
def outside_of_all() -> Iterator[None]:
    """Let the context variables say nothing of a request or a workflow, in a block."""
    tokens = [(place, place.set(None)) for place in _PLACES]
    try:
        yield
    finally:
        for place, token in tokens:
            place.reset(token)
