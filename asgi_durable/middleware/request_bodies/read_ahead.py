"""A request body that is looked at before it is known whether its request has a key."""

from __future__ import annotations

from collections import deque

from asgi_durable.middleware.asgi import Message, Receive, Scope
from asgi_durable.middleware.request_bodies.replayed_body import read_start

__all__ = ["ReadAhead"]


class ReadAhead:
    """Reads a body, and gives the same messages again.

    Args:
        receive: Where they come from.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[Message] = deque()

    async def read(self, scope: Scope, max_bytes: int) -> bytes | None:
        """Return the body, ``None`` if it is longer; of that only the start is read.

        Raises:
            ClientGoneError: The client went away. A truncated body is never taken for a whole.
        """
        body, is_whole = await read_start(scope, self._take, max_bytes)
        return body if is_whole and len(body) <= max_bytes else None

    async def receive(self) -> Message:
        """Return the next message; what was read first, and then what the client sends."""
        return self._messages.popleft() if self._messages else await self._receive()

    async def _take(self) -> Message:
        message = await self._receive()
        self._messages.append(message)
        return message
