"""Request bodies that are too long to be kept in memory."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Protocol

from asgi_durable.engine.process.spool import SpoolSpace
from asgi_durable.errors import WorkflowInterruptedError
from asgi_durable.middleware.asgi import Message, Receive
from asgi_durable.request_errors import RequestTooLargeError, SpoolFullError

__all__ = ["LongBody", "Pieces", "PiecewiseHash", "RefusedBody", "SpentBody", "SpooledBody"]

PIECE_BYTES = 64 * 1024


class PiecewiseHash(Protocol):
    """Makes the fingerprint of a request whose body comes in pieces."""

    def add(self, piece: bytes) -> None:
        """Add the next piece of the body."""

    def fingerprint(self) -> str:
        """Return the fingerprint, of the body so far."""


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

    def __init__(self, start: bytes, receive: Receive, hashing: PiecewiseHash) -> None:
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

    def hash_with(self, hashing: PiecewiseHash) -> None:
        """Make the fingerprint in another way; before anything of the body is received."""
        self._hashing = hashing

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

    async def read_into(self, write: Callable[[bytes], object]) -> None:
        """Read what is left of it, and write it."""
        while not self.over.is_set():
            message = await self.receive()
            if piece := message.get("body", b""):
                # In a thread: the disk may be slow.
                await asyncio.to_thread(write, piece)

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
    """A whole body in a temporary file, which is deleted when it is closed or not used any more.

    Args:
        space: Where its bytes are counted, until then.
    """

    def __init__(self, space: SpoolSpace) -> None:
        self.over = asyncio.Event()
        self.is_cut = False
        self._file = _CountedFile(space)
        self._left_bytes = 0

    @classmethod
    async def of(cls, body: LongBody, space: SpoolSpace) -> SpooledBody:
        """Read a body to its end.

        It may have been cut off, see there.

        Raises:
            SpoolFullError: There is no room for it now.
            RequestTooLargeError: There never is.
        """
        spooled = cls(space)
        try:
            await body.read_into(spooled._file.write)
        except BaseException:
            spooled.close()
            raise
        spooled._left_bytes = spooled._file.rewind()
        return spooled

    async def receive(self) -> Message:
        """Return the next piece."""
        piece = await asyncio.to_thread(self._file.read, PIECE_BYTES) if self._left_bytes else b""
        self._left_bytes -= len(piece)
        if not self._left_bytes:
            self.over.set()
        return {"type": "http.request", "body": piece, "more_body": self._left_bytes > 0}

    async def read_to_end(self) -> None:
        """Do nothing: it is whole."""

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


class _CountedFile:
    """A temporary file whose bytes are counted until it is closed, or nobody has it any more."""

    def __init__(self, space: SpoolSpace) -> None:
        # Writing is done in threads that go on where their caller is cancelled.
        self._lock = threading.Lock()
        self._space = space
        self._bytes = 0
        self._cipher = space.new_cipher()
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by its user

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        return data if self._cipher is None else self._cipher.decrypt(data)

    def write(self, data: bytes) -> None:
        with self._lock:
            if self._file.closed:
                return
            if self._bytes + len(data) > self._space.max_bytes:
                msg = f"the body has more than max_spooled={self._space.max_bytes} bytes"
                raise RequestTooLargeError(msg)
            if not self._space.take(len(data)):
                msg = "too many long bodies are compared with those of other requests; try again"
                raise SpoolFullError(msg)
            self._bytes += len(data)
            self._file.write(data if self._cipher is None else self._cipher.encrypt(data))

    def rewind(self) -> int:
        """Return to the beginning; return the length."""
        self._file.seek(0)
        return self._bytes

    def close(self) -> None:
        """Delete it."""
        with self._lock:
            self._file.close()
            count, self._bytes = self._bytes, 0
        self._space.give_back(count)

    def __del__(self) -> None:
        """Do the same: whoever was to use it may have been cancelled before it began."""
        if hasattr(self, "_file"):
            self.close()


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
