"""A request body that is read before the app is called, and then handed to it."""

from __future__ import annotations

import asyncio
import logging

from asgi_durable.concurrency.once import Once
from asgi_durable.middleware.asgi import Message, Receive, Scope, Send, header_values
from asgi_durable.middleware.request_bodies.body_source import BodySource
from asgi_durable.middleware.request_bodies.long_body import Pieces
from asgi_durable.request_errors import RequestTooLargeError

__all__ = ["ClientGoneError", "ReplayedBody", "end_for_nobody", "read_start", "too_large"]

logger = logging.getLogger(__name__)

# Of nginx, for a request whose client has closed the connection.
_CLIENT_CLOSED = 499


class ClientGoneError(Exception):
    """The client went away before its request was complete."""


async def end_for_nobody(send: Send) -> None:
    """End a request whose client has gone.

    A middleware around this one may take a call without an answer for an error, as Starlette's
    ``BaseHTTPMiddleware`` does. A server drops what it is sent.
    """
    try:
        await send({"type": "http.response.start", "status": _CLIENT_CLOSED, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except Exception:
        logger.debug("The server takes nothing more: the client has gone", exc_info=True)


async def read_start(scope: Scope, receive: Receive, max_bytes: int) -> tuple[bytes, bool]:
    """Return the body, or of a longer one than *max_bytes* what had to be read to know that.

    Returns:
        What was read, and whether that is the whole.

    Raises:
        ClientGoneError: The client went away. A truncated body is never taken for a whole.
    """
    announced = header_values(scope["headers"], b"content-length")
    # Python reads no numbers of thousands of digits; a length of 19 is too much anyway.
    if announced and announced[0].isdigit() and int(announced[0][:19]) > max_bytes:
        return b"", False
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
        if is_whole or len(body) > max_bytes:
            return bytes(body), is_whole


class ReplayedBody:
    """Gives an app a body that was read already, or its pieces, and later what the client sends.

    ``http.disconnect`` is kept from the app for as long as it works on an answer that will be
    kept: a client that goes away does not stop the work. Once the engine stops it is told all the
    same, so that nobody waits for what never comes. None is ever invented.

    Args:
        body: What was read, or what gives it piece by piece.
        receive: Where the next messages come from.
        is_watched: True if :meth:`wait_until_gone` is called, and the app is told at once.
        ahead: Where the body was read ahead, if it was; then *receive* gives it once more.

    Attributes:
        pieces: What gives the body piece by piece, ``None`` if it was read.
        may_tell: Set once the app may be told that its client has gone.
        withheld: Set once the app has asked for a disconnect that it may not learn of yet.
        is_interrupted: True once it was told although its answer would have been kept: what it
            answers from then on may be a part of what it would have come to.
    """

    def __init__(
        self,
        body: bytes | Pieces,
        receive: Receive,
        *,
        is_watched: bool = False,
        ahead: BodySource | None = None,
    ) -> None:
        self._body = body if isinstance(body, bytes) else None
        self.pieces = None if isinstance(body, bytes) else body
        self._receive = receive
        self._is_watched = is_watched
        self._is_read = asyncio.Event()
        self._ahead = ahead
        if ahead is None:
            self._is_read.set()
        self._gone = asyncio.Event()
        self.may_tell = asyncio.Event()
        self.withheld: Once[bool] = Once(asyncio.get_running_loop())
        self.is_interrupted = False
        self._is_stopping = False

    async def receive(self) -> Message:
        """Return the next message for the app."""
        if not self._is_read.is_set():
            return await self._receive_again()
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self.pieces is not None and (self.pieces.is_cut or not self.pieces.over.is_set()):
            message = await self.pieces.receive()
            if message["type"] == "http.disconnect":
                # At once: there is no whole request, and nothing that could be kept of it.
                self._gone.set()
            return message
        if not self._is_watched and not self._gone.is_set():
            message = await self._receive()
            if message["type"] != "http.disconnect":
                return message
            # Some servers say so once only; who asks may not wait until it is told.
            self._gone.set()
        await self._gone.wait()
        if not self._is_watched:
            await self._wait_until_told()
        return {"type": "http.disconnect"}

    async def _wait_until_told(self) -> None:
        if not self.may_tell.is_set():
            self.withheld.set(True)
        await self.may_tell.wait()
        self.is_interrupted = self._is_stopping

    async def _receive_again(self) -> Message:
        """Return the next piece from where it comes, with what is to be said about it there."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._body = None
            self._is_read.set()
        if message["type"] == "http.disconnect":
            self._gone.set()
        return message

    def tell_at_stop(self) -> None:
        """Let the app be told, as the engine stops."""
        if not self.may_tell.is_set():
            self._is_stopping = True
            self.may_tell.set()

    async def wait_until_gone(self) -> None:
        """Return once the client has gone away."""
        if self.pieces is not None:
            # Invariant: what is left of the body is the app's to receive.
            await self.pieces.over.wait()
        # Also before an app has asked for its body, which it need not do.
        receive = self._receive if self._ahead is None else self._ahead.read_ahead
        while not self._gone.is_set():
            message = await receive()
            if message["type"] == "http.disconnect":
                self._gone.set()


def too_large(max_bytes: int) -> RequestTooLargeError:
    """Return the answer to a longer body."""
    return RequestTooLargeError(
        f"the body of a request with an idempotency key is at most {max_bytes} bytes long"
    )
