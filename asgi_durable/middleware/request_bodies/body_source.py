"""What a server sends of a request's body, which can be read ahead of the application.

The body of a keyed request is read before the application's routing, as its fingerprint is needed.
Middlewares around that may wrap ``receive()``, and limit a body by what the route says: they must
see it when the application reads it, and not before they know the route.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from asgi_durable.middleware.asgi import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodySource", "ReadAheadMiddleware", "lift_limit", "source_behind"]

# Lets a request's answer pass whatever would take it for one to a body that was too long.
LiftLimit = Callable[[Scope, Receive, Send], Awaitable[None]]

_KEY = "asgi_durable.body"
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class BodySource:
    """Gives a server's messages; those that were read ahead come first.

    Args:
        receive: The server's.
        lift_limit: Called before an answer that the application is not asked for.

    Attributes:
        is_untouched: True until somebody has asked for a message.
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
        """Return the next message of the server's; :meth:`receive` returns it as well."""
        self._ahead.append(await self._receive())
        return self._ahead[-1]

    def forget(self) -> None:
        """Give nothing more of what was read ahead."""
        self._ahead.clear()


class ReadAheadMiddleware:
    """Let bodies be read ahead, past the middlewares inside of this one.

    Args:
        app: The ASGI app to wrap.
        lift_limit: Called before an answer that the application is not asked for, a replay say:
            some middlewares refuse to send one where the request is longer than what they know
            to be the limit.
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
    """Return what is behind a ``receive()`` that is wrapped, if the body can be read ahead."""
    source: BodySource | None = scope.get(_KEY)
    if source is None or not source.is_untouched or receive == source.receive:
        return None
    return source


async def lift_limit(scope: Scope, receive: Receive, send: Send) -> None:
    """Let the answer pass that follows, and that the application is not asked for."""
    source: BodySource | None = scope.get(_KEY)
    if source is not None:
        await source.lift_limit(scope, receive, send)
