"""Request bodies that are too long to be kept in memory."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from typing import IO, Protocol

from asgi_durable.errors import WorkflowInterruptedError
from asgi_durable.middleware.asgi import Message, Receive
from asgi_durable.middleware.fingerprint import RequestHash
from asgi_durable.request_errors import RequestTooLargeError

__all__ = ["LongBody", "Pieces", "RefusedBody", "SpentBody", "SpooledBody"]

PIECE_BYTES = 64 * 1024


class Pieces(Protocol):
    """A body that an app is given piece by piece, once.

    Attributes:
        over: Set once nothing more of it comes.
        is_cut: True if its end is not to be had: the client went away before it, say.
    """

    over: asyncio.Event
    is_cut: bool

    async def receive(self) -> Message:
        """Return the next piece; ``http.disconnect`` if the client went away instead."""

    async def read_to_end(self) -> None:
        """Read what the app has left of it, if the client still has to send it."""

    def close(self) -> None:
        """Give back what it is kept in."""


class LongBody:
    """A body that is handed on as it arrives, and hashed on its way.

    No more of it is kept than had to be read to know that it is long.

    Args:
        start: That.
        receive: Where the rest comes from.
        hashing: Gets all of it.

    Attributes:
        on_whole: Called with the request's fingerprint once the body is whole.
        on_cut: Called if the client goes away before that.
    """

    def __init__(self, start: bytes, receive: Receive, hashing: RequestHash) -> None:
        self.over = asyncio.Event()
        self.is_cut = False
        self.on_whole: Callable[[str], None] = lambda _: None
        self.on_cut: Callable[[], None] = lambda: None
        self._start = start
        self._receive = receive
        self._hashing = hashing
        # An app may ask from several tasks: each gets a message of its own, in order.
        self._turn = asyncio.Lock()

    @property
    def fingerprint(self) -> str:
        """The request's, of what has arrived so far."""
        return self._hashing.fingerprint()

    async def receive(self) -> Message:
        """Return the next piece; at its end as well, so that nobody waits for another one."""
        async with self._turn:
            if self.is_cut:
                return {"type": "http.disconnect"}
            if self.over.is_set():
                return {"type": "http.request", "body": b"", "more_body": False}
            return await self._next()

    async def read_to_end(self) -> None:
        """Read what is left of it, and hash it."""
        while not self.over.is_set():
            await self.receive()

    def read_from(self, receive: Receive) -> None:
        """Let the rest come from elsewhere."""
        self._receive = receive

    async def read_into(self, file: IO[bytes]) -> None:
        """Read what is left of it, and write it into a file."""
        while not self.over.is_set():
            message = await self.receive()
            if piece := message.get("body", b""):
                # In a thread: the disk may be slow.
                await asyncio.to_thread(file.write, piece)

    def close(self) -> None:
        """Do nothing: it is kept nowhere."""

    async def _next(self) -> Message:
        if self._start:
            message: Message = {"type": "http.request", "body": self._start, "more_body": True}
            self._start = b""
        else:
            message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_cut = True
            self.over.set()
            self.on_cut()
            return message
        self._hashing.add(message.get("body", b""))
        if not message.get("more_body", False):
            self.over.set()
            self.on_whole(self.fingerprint)
        return message


class SpooledBody:
    """A whole body in a temporary file, which is deleted when it is closed."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.is_cut = False
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by its user
        self._left_bytes = 0

    @classmethod
    async def of(cls, body: LongBody) -> SpooledBody:
        """Read a body to its end.

        It may have been cut off, see there.
        """
        spooled = cls()
        try:
            await body.read_into(spooled.file)
        except BaseException:
            spooled.close()
            raise
        spooled._left_bytes = spooled.file.tell()
        spooled.file.seek(0)
        return spooled

    async def receive(self) -> Message:
        """Return the next piece."""
        piece = await asyncio.to_thread(self.file.read, PIECE_BYTES) if self._left_bytes else b""
        self._left_bytes -= len(piece)
        if not self._left_bytes:
            self.over.set()
        return {"type": "http.request", "body": piece, "more_body": self._left_bytes > 0}

    async def read_to_end(self) -> None:
        """Do nothing: it is whole."""

    def close(self) -> None:
        """Delete the file."""
        self.file.close()


class SpentBody:
    """A whole body that was read, to be compared, and is kept nowhere.

    An app that asks for it is told so with an error, which is answered 503; and nothing that it
    answers is kept.
    """

    def __init__(self, workflow_id: str) -> None:
        self.over = asyncio.Event()
        self.over.set()
        self.is_cut = True
        self._workflow_id = workflow_id

    async def receive(self) -> Message:
        """Raise.

        Raises:
            WorkflowInterruptedError: The request is to be sent again.
        """
        raise WorkflowInterruptedError(self._workflow_id, "its body was read to be compared only")

    async def read_to_end(self) -> None:
        """Do nothing: there is nothing left of it."""

    def close(self) -> None:
        """Do nothing: it is kept nowhere."""


class RefusedBody:
    """A body that could not be read: what is around the middleware has refused it.

    The app is told so where it asks for it, and answers as it does without a key. Nothing that it
    answers without having asked is kept.

    Args:
        error: What ``receive()`` has raised.
    """

    def __init__(self, error: Exception) -> None:
        self.over = asyncio.Event()
        self.over.set()
        self.is_cut = True
        self._error = error

    def refusal(self) -> Exception:
        """Return what to raise where the app is not asked: the key has a request already."""
        if getattr(self._error, "status_code", None) == RequestTooLargeError.default_status:
            return RequestTooLargeError("the body is longer than is allowed here")
        return self._error

    async def receive(self) -> Message:
        """Raise what ``receive()`` has raised."""
        raise self._error

    async def read_to_end(self) -> None:
        """Do nothing: there is nothing to be had of it."""

    def close(self) -> None:
        """Do nothing: it is kept nowhere."""
