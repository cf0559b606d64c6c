"""Request bodies that are too long for the memory of the process."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Protocol

from asgi_durable.engine.process.spool import SpoolSpace
from asgi_durable.errors import WorkflowInterruptedError
from asgi_durable.middleware.asgi import Message, Receive
from asgi_durable.middleware.request_bodies.threads import run_in_thread
from asgi_durable.request_errors import RequestTooLargeError, SpoolFullError

__all__ = ["ChunkHash", "ChunkedBody", "LongBody", "RefusedBody", "SpentBody", "SpooledBody"]

CHUNK_BYTES = 64 * 1024


class ChunkHash(Protocol):
    """Computes the fingerprint of a request whose body arrives in chunks."""

    def add(self, chunk: bytes) -> None:
        """Add the next chunk of the body."""

    def fingerprint(self) -> str:
        """Return the fingerprint of the body so far."""


class ChunkedBody(Protocol):
    """A body that an app receives in chunks, once.

    Attributes:
        over: Set once no further chunk comes.
        is_cut: True if the body's end is lost, for example because the client disconnected.
    """

    over: asyncio.Event
    is_cut: bool

    async def receive(self) -> Message:
        """Return the next chunk, or ``http.disconnect`` if the client disconnected."""

    async def read_to_end(self) -> None:
        """Read the chunks that the app has not received, if the client still has to send them."""

    def close(self) -> None:
        """Release the storage of the body."""


class LongBody:
    """A body that is passed on and hashed as it arrives.

    Only its start stays in memory: the bytes that had to be read to know that it is long.

    Args:
        start: The bytes of the start.
        receive: Returns the rest.
        hashing: Hashes the whole body.

    Attributes:
        on_whole: Called with the request's fingerprint at the end of the body.
        on_cut: Called if the client disconnects before that.
    """

    def __init__(self, start: bytes, receive: Receive, hashing: ChunkHash) -> None:
        self.over = asyncio.Event()
        self.is_cut = False
        self.on_whole: Callable[[str], None] = lambda _: None
        self.on_cut: Callable[[], None] = lambda: None
        self._start = start
        self._receive = receive
        self._hashing = hashing
        # An app may receive in several tasks: each gets a message of its own, in order.
        self._turn = asyncio.Lock()

    @property
    def fingerprint(self) -> str:
        """The request's fingerprint, of the chunks that have arrived so far."""
        return self._hashing.fingerprint()

    def hash_with(self, hashing: ChunkHash) -> None:
        """Compute the fingerprint in another way; before the first chunk is received."""
        self._hashing = hashing

    async def receive(self) -> Message:
        """Return the next chunk; at the end an empty one, so that no caller waits."""
        async with self._turn:
            if self.is_cut:
                return {"type": "http.disconnect"}
            if self.over.is_set():
                return {"type": "http.request", "body": b"", "more_body": False}
            return await self._next()

    async def read_to_end(self) -> None:
        """Read the rest of the body, and hash it."""
        while not self.over.is_set():
            await self.receive()

    def read_from(self, receive: Receive) -> None:
        """Receive the rest from elsewhere."""
        self._receive = receive

    async def read_into(self, write: Callable[[bytes], object]) -> None:
        """Read the rest of the body, and pass each chunk to *write*, in a thread."""
        while not self.over.is_set():
            message = await self.receive()
            if chunk := message.get("body", b""):
                # In a thread, as the disk may be slow.
                await run_in_thread(write, chunk)

    def close(self) -> None:
        """Do nothing: the body is stored nowhere."""

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
    """A whole body in a temporary file, deleted when it is closed or garbage collected.

    Args:
        space: Counts the bytes of the file until then.
    """

    def __init__(self, space: SpoolSpace) -> None:
        self.over = asyncio.Event()
        self.is_cut = False
        self._file = _CountedFile(space)
        self._remaining_bytes = 0

    @classmethod
    async def of(cls, body: LongBody, space: SpoolSpace) -> SpooledBody:
        """Read a body to its end into a new file.

        The client may have disconnected meanwhile: ``body.is_cut`` tells.

        Raises:
            SpoolFullError: Other bodies take the room for it now.
            RequestTooLargeError: It is longer than all of the room.
        """
        spooled = cls(space)
        try:
            await body.read_into(spooled._file.write)
        except BaseException:
            spooled.close()
            raise
        spooled._remaining_bytes = spooled._file.rewind()
        return spooled

    async def receive(self) -> Message:
        """Return the next chunk."""
        chunk = b""
        if self._remaining_bytes:
            chunk = await run_in_thread(self._file.read, CHUNK_BYTES)
        self._remaining_bytes -= len(chunk)
        if not self._remaining_bytes:
            self.over.set()
        return {"type": "http.request", "body": chunk, "more_body": self._remaining_bytes > 0}

    async def read_to_end(self) -> None:
        """Do nothing: the client has sent all of the body."""

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


class _CountedFile:
    """A temporary file whose bytes are counted until it is closed or garbage collected."""

    def __init__(self, space: SpoolSpace) -> None:
        # A thread that writes continues when its caller is cancelled.
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
        """Return to the beginning; return the length in bytes."""
        self._file.seek(0)
        return self._bytes

    def close(self) -> None:
        """Delete the file, and return its bytes to the space."""
        with self._lock:
            self._file.close()
            count, self._bytes = self._bytes, 0
        self._space.give_back(count)

    def __del__(self) -> None:
        """Close the file: its user may have been cancelled before it could."""
        if hasattr(self, "_file"):
            self.close()


class SpentBody:
    """A whole body that was read only to compare it, and is stored nowhere.

    ``receive()`` raises, which becomes a 503; no response is stored after that.
    """

    def __init__(self, workflow_id: str) -> None:
        self.over = asyncio.Event()
        self.over.set()
        self.is_cut = True
        self._workflow_id = workflow_id

    async def receive(self) -> Message:
        """Raise.

        Raises:
            WorkflowInterruptedError: Always; the client has to send the request again.
        """
        raise WorkflowInterruptedError(self._workflow_id, "its body was read to be compared only")

    async def read_to_end(self) -> None:
        """Do nothing: the body is spent."""

    def close(self) -> None:
        """Do nothing: the body is stored nowhere."""


class RefusedBody:
    """A body that could not be read, as a middleware further out has refused it.

    ``receive()`` raises the same error in the app, which responds as it does without a key. A
    response that the app sends without having asked for the body is not stored.

    Args:
        error: The error that ``receive()`` has raised.
    """

    def __init__(self, error: Exception) -> None:
        self.over = asyncio.Event()
        self.over.set()
        self.is_cut = True
        self._error = error

    def refusal(self) -> Exception:
        """Return the error for a duplicate, which the app does not see."""
        if getattr(self._error, "status_code", None) == RequestTooLargeError.default_status:
            return RequestTooLargeError("the body is longer than is allowed here")
        return self._error

    async def receive(self) -> Message:
        """Raise the error that ``receive()`` has raised."""
        raise self._error

    async def read_to_end(self) -> None:
        """Do nothing: the body cannot be read."""

    def close(self) -> None:
        """Do nothing: the body is stored nowhere."""
