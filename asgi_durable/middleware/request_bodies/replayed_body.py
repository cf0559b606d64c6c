"""Request bodies that are read before the app is called, and then passed to it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from asgi_durable.concurrency.once import Once
from asgi_durable.middleware.asgi import Message, Receive, Scope, Send, header_values
from asgi_durable.middleware.request_bodies.body_source import BodySource
from asgi_durable.middleware.request_bodies.long_body import ChunkedBody
from asgi_durable.request_errors import RequestTooLargeError

__all__ = [
    "ClientDisconnectedError",
    "PeekedBody",
    "ReplayedBody",
    "end_without_client",
    "read_start",
    "too_large",
]

logger = logging.getLogger(__name__)

# nginx's status for a request whose client has closed the connection.
_CLIENT_CLOSED = 499


class ClientDisconnectedError(Exception):
    """The client disconnected before its request was complete."""


class ReplayedBody:
    """Passes a body that was read before to an app, then the client's further messages.

    The app does not get ``http.disconnect`` while it works on a response that will be stored: a
    client that disconnects does not stop the work. Once the engine stops the app gets it all the
    same, so that it does not wait for a message that never comes. The message is never invented.

    Args:
        body: The whole body, or the object that returns its chunks.
        receive: Returns the client's next messages.
        is_watched: True if a task calls :meth:`wait_until_disconnected`, and the app may get the
            disconnect at once.
        ahead: The source that the body was read ahead from, if it was. *receive* returns the
            body once more then.

    Attributes:
        chunks: The object that returns the body's chunks; ``None`` for a whole body.
        may_report_disconnect: Set once the app may get the disconnect.
        withheld: Set once the app waits for a disconnect that it may not get yet.
        is_interrupted: True once the app got the disconnect although its response would have
            been stored. From then on the response may be cut short.
    """

    def __init__(
        self,
        body: bytes | ChunkedBody,
        receive: Receive,
        *,
        is_watched: bool = False,
        ahead: BodySource | None = None,
    ) -> None:
        self._body = body if isinstance(body, bytes) else None
        self.chunks = None if isinstance(body, bytes) else body
        self._receive = receive
        self._is_watched = is_watched
        self._is_read = asyncio.Event()
        self._ahead = ahead
        if ahead is None:
            self._is_read.set()
        self._disconnected = asyncio.Event()
        self.may_report_disconnect = asyncio.Event()
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
        if self.chunks is not None and (self.chunks.is_cut or not self.chunks.over.is_set()):
            message = await self.chunks.receive()
            if message["type"] == "http.disconnect":
                # Without delay: the request is not complete, so nothing of it can be stored.
                self._disconnected.set()
            return message
        if not self._is_watched and not self._disconnected.is_set():
            message = await self._receive()
            if message["type"] != "http.disconnect":
                return message
            # Some servers send it only once, and the app may be cancelled while it waits here.
            self._disconnected.set()
        await self._disconnected.wait()
        if not self._is_watched:
            await self._wait_until_reported()
        return {"type": "http.disconnect"}

    async def _wait_until_reported(self) -> None:
        if not self.may_report_disconnect.is_set():
            self.withheld.set(True)
        await self.may_report_disconnect.wait()
        self.is_interrupted = self._is_stopping

    async def _receive_again(self) -> Message:
        """Return the next chunk from where it was read ahead, through the middlewares between."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._body = None
            self._is_read.set()
        if message["type"] == "http.disconnect":
            self._disconnected.set()
        return message

    def report_disconnect_at_stop(self) -> None:
        """Let the app get the disconnect, because the engine stops."""
        if not self.may_report_disconnect.is_set():
            self._is_stopping = True
            self.may_report_disconnect.set()

    async def wait_until_disconnected(self) -> None:
        """Return once the client has disconnected."""
        if self.chunks is not None:
            # Invariant: only the app receives the rest of the body.
            await self.chunks.over.wait()
        # Also before the app has asked for its body, which it need not do.
        receive = self._receive if self._ahead is None else self._ahead.read_ahead
        while not self._disconnected.is_set():
            message = await receive()
            if message["type"] == "http.disconnect":
                self._disconnected.set()


class PeekedBody:
    """Reads a body to look for the request's key in it, and returns the same messages again.

    Args:
        receive: Returns the client's messages.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[Message] = deque()

    async def read(self, scope: Scope, max_bytes: int) -> bytes | None:
        """Return the body; ``None`` if it is longer than *max_bytes*, after its start is read.

        Raises:
            ClientDisconnectedError: The client disconnected before the end of the body. A
                truncated body never passes for a whole one.
        """
        body, is_whole = await read_start(scope, self._take, max_bytes)
        return body if is_whole and len(body) <= max_bytes else None

    async def receive(self) -> Message:
        """Return the next message: first those that :meth:`read` took, then the client's."""
        return self._messages.popleft() if self._messages else await self._receive()

    async def _take(self) -> Message:
        message = await self._receive()
        self._messages.append(message)
        return message


async def read_start(scope: Scope, receive: Receive, max_bytes: int) -> tuple[bytes, bool]:
    """Read a body up to its end, or until it is known to be longer than *max_bytes*.

    Returns:
        The bytes read, none if ``Content-Length`` is above the limit; and whether they are the
        whole body.

    Raises:
        ClientDisconnectedError: The client disconnected before the end of the body. A truncated
            body never passes for a whole one.
    """
    announced = header_values(scope["headers"], b"content-length")
    # Python parses no numbers of thousands of digits; a length of 19 is too much anyway.
    if announced and announced[0].isdigit() and int(announced[0][:19]) > max_bytes:
        return b"", False
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
        if is_whole or len(body) > max_bytes:
            return bytes(body), is_whole


async def end_without_client(send: Send) -> None:
    """End a request whose client has disconnected, with a response that nobody receives.

    A middleware around this one may treat a call without a response as an error, as Starlette's
    ``BaseHTTPMiddleware`` does. A server drops the messages.
    """
    try:
        await send({"type": "http.response.start", "status": _CLIENT_CLOSED, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except Exception:
        logger.debug("The server takes no response: the client has disconnected", exc_info=True)


def too_large(max_bytes: int) -> RequestTooLargeError:
    """Return the error for a longer body."""
    return RequestTooLargeError(
        f"the body of a request with an idempotency key is at most {max_bytes} bytes long"
    )
