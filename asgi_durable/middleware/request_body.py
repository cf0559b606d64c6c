"""A request body that is read before the app is called, and then handed to it."""

from __future__ import annotations

import asyncio

from asgi_durable.errors import RequestTooLargeError
from asgi_durable.middleware.asgi import Message, Receive, Scope, header_values

__all__ = ["ClientGoneError", "ReplayedBody", "read_body"]


class ClientGoneError(Exception):
    """The client went away before its request was complete."""


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        RequestTooLargeError: It is longer than *max_bytes*; it was not read to its end.
        ClientGoneError: The client went away. A truncated body is never taken for a whole.
    """
    announced = header_values(scope["headers"], b"content-length")
    # Python reads no numbers of thousands of digits; a length of 19 is too much anyway.
    if announced and announced[0].isdigit() and int(announced[0][:19]) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


class ReplayedBody:
    """Gives an app a body that was read already, and later what the client sends.

    ``http.disconnect`` is kept from the app for as long as it works on an answer that will be
    kept: a client that goes away does not stop the work. None is ever invented.

    Args:
        body: What was read.
        receive: Where the next messages come from.
        is_watched: True if :meth:`wait_until_gone` is called, and the app is told at once.

    Attributes:
        may_tell: Set once the app may be told that its client has gone.
    """

    def __init__(self, body: bytes, receive: Receive, *, is_watched: bool = False) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._is_watched = is_watched
        self._gone = asyncio.Event()
        self.may_tell = asyncio.Event()

    async def receive(self) -> Message:
        """Return the next message for the app."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._is_watched and not self._gone.is_set():
            message = await self._receive()
            if message["type"] != "http.disconnect":
                return message
            # Some servers say so once only; who asks may not wait until it is told.
            self._gone.set()
        await self._gone.wait()
        if not self._is_watched:
            await self.may_tell.wait()
        return {"type": "http.disconnect"}

    async def wait_until_gone(self) -> None:
        """Return once the client has gone away."""
        while not self._gone.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone.set()


def _too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"the body of a request with an idempotency key is at most {max_bytes} bytes long"
    )
