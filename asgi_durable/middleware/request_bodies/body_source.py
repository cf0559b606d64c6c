"""Reads a request's body ahead of the application.

The fingerprint of a keyed request needs the body before the application routes the request.
Middlewares further out may wrap ``receive()``, and limit the body by a limit of the route: they
must see the body when the application reads it, and not before they know the route.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from asgi_durable.middleware.asgi import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodySource", "ReadAheadMiddleware", "lift_limit", "source_behind"]

# Raises the limit of a middleware that would refuse to send a response to a longer body.
LiftLimit = Callable[[Scope, Receive, Send], Awaitable[None]]

_KEY = "asgi_durable.body"
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class BodySource:
    """Returns a server's messages, those that were read ahead first.

    Args:
        receive: The server's.
        lift_limit: Called before a response that the application has no part in.

    Attributes:
        is_untouched: True until the first call of :meth:`receive`.
    """

    def __init__(self, receive: Receive, lift_limit: LiftLimit) -> None:
        self._receive = receive
        self.lift_limit = lift_limit
        self._ahead: deque[Message] = deque()
        self.is_untouched = True

    async def receive(self) -> Message:
        """Return the next message."""
        self.is_untouched = False
        return self._ahead.popleft() if self._ahead else await self._receive()

    async def read_ahead(self) -> Message:
        """Return the server's next message; :meth:`receive` returns it later as well."""
        self._ahead.append(await self._receive())
        return self._ahead[-1]

    def forget(self) -> None:
        """Drop the messages that were read ahead."""
        self._ahead.clear()


class ReadAheadMiddleware:
    """Let bodies be read ahead, past the middlewares inside this one.

    Args:
        app: The ASGI app to wrap.
        lift_limit: Called before a response that the application has no part in, for example a
            replay. Some middlewares refuse to send a response where the request is longer than
            the limit that they know so far.
    """

    def __init__(self, app: ASGIApp, lift_limit: LiftLimit) -> None:
        self.app = app
        self._lift_limit = lift_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "http" and scope["method"] not in _WITHOUT_BODY:
            source = scope[_KEY] = BodySource(receive, self._lift_limit)
            receive = source.receive
        await self.app(scope, receive, send)


def source_behind(scope: Scope, receive: Receive) -> BodySource | None:
    """Return the source behind a wrapped ``receive()``, if the body can be read ahead."""
    source: BodySource | None = scope.get(_KEY)
    if source is None or not source.is_untouched or receive == source.receive:
        return None
    return source


async def lift_limit(scope: Scope, receive: Receive, send: Send) -> None:
    """Prepare for a response that the application has no part in; see `ReadAheadMiddleware`."""
    source: BodySource | None = scope.get(_KEY)
    if source is not None:
        await source.lift_limit(scope, receive, send)
