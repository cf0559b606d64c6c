"""Responses that are recorded as streams: one run appends to them, and others read meanwhile."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from asgi_durable.codec.sealing.sealer import PIECE, Sealer
from asgi_durable.concurrency.backoff import Backoff
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.stopping import RunStopped
from asgi_durable.engine.workflows.result_waiters import ResultWaiters, Waiter
from asgi_durable.errors import DecodeError, EncryptionKeyMissingError, StorageError
from asgi_durable.storage.protocol import PAGE_BYTES, StepLog
from asgi_durable.storage.records import CUT_ALL, CUT_FOR_GOOD, ChunkRecord, DamagedRowError
from asgi_durable.storage.writes import RecordChunk

__all__ = [
    "StreamDamagedError",
    "StreamLog",
    "StreamLostError",
    "Streams",
    "check_chunks",
    "checked_start",
    "fits",
    "read_chunks",
]

logger = logging.getLogger(__name__)

# How many clients may follow incomplete streams at once in this process.
MAX_FOLLOWERS = 1000
MAX_FOLLOWERS_OF_ONE = 256
FIRST_POLL_SECONDS = 0.025
LONGEST_POLL_SECONDS = 0.25


class StreamLostError(Exception):
    """The recorded part of a stream is incomplete, and nothing more will be recorded."""


class StreamDamagedError(Exception):
    """The recorded chunks of a stream are damaged."""


class StreamLog:
    """Records the response of a request, chunk by chunk.

    Args:
        run: The request's run.
        on_grown: Called with the workflow's id once a chunk is durable.

    Attributes:
        may_compress: False once the response is known to be compressed already.
    """

    def __init__(self, run: Run, on_grown: Callable[[str], None]) -> None:
        self.may_compress = True
        self._run = run
        self._on_grown = on_grown

    @property
    def workflow_id(self) -> str:
        """The request's id."""
        return self._run.workflow_id

    @property
    def created_at_us(self) -> int:
        """When the request was claimed; a later request with its key has another time."""
        return self._run.workflow.created_at_us

    @property
    def is_stopped(self) -> bool:
        """True once nothing more is recorded."""
        return self._run.stopping.check() is not None

    async def read(self, after: int) -> list[ChunkRecord]:
        """Return the next chunks that earlier executions have recorded; see ``StepLog``.

        Raises:
            RunStopped: The storage failed, or this process does not have an encryption key.
            StreamDamagedError: A chunk cannot be read.
        """
        services = self._run.services
        try:
            return await read_chunks(
                services.storage, services.registry.sealer, self.workflow_id, after
            )
        except EncryptionKeyMissingError as error:
            # Invariant: not treated as damage, which would replace the recorded chunks.
            raise self._run.stop(error) from error
        except StorageError as error:
            raise self._run.stop(error, retry_here=True) from error

    async def record(self, *chunks: ChunkRecord) -> None:
        """Make chunks durable, and everything that was recorded before them.

        Raises:
            RunStopped: The run must not continue, or is over.
        """
        run = self._run
        if run.closed:
            raise RunStopped
        run.stopping.raise_if_stopped()
        for chunk in chunks:
            run.writes.submit(RecordChunk(self._sealed(chunk), run.executor_id))
        await run.writes.wait_durable()
        self._on_grown(self.workflow_id)

    def _sealed(self, chunk: ChunkRecord) -> ChunkRecord:
        sealer = self._run.services.registry.sealer
        data = sealer.seal_bytes(chunk.data, PIECE, may_compress=self.may_compress)
        return chunk if data is chunk.data else replace(chunk, data=data)


class Streams:
    """Reads recorded streams, in whatever process they are recorded.

    Each method raises ``StreamDamagedError`` if the chunks cannot belong to one stream,
    ``EncryptionKeyMissingError`` if this process does not have their key, and ``StorageError`` if
    the storage failed.

    Args:
        storage: The step log.
        sealer: Opens the chunks.
        result_waiters: Wakes readers when a stream has grown.
    """

    def __init__(self, storage: StepLog, sealer: Sealer, result_waiters: ResultWaiters) -> None:
        self._storage = storage
        self._sealer = sealer
        self._result_waiters = result_waiters
        self._followers: Counter[str] = Counter()

    async def start_of(self, workflow_id: str) -> ChunkRecord | None:
        """Return a stream's start, ``None`` if nothing is recorded."""
        # The offset is so far in front of the stream that the page has its start.
        return checked_start(await self._page(workflow_id, -PAGE_BYTES))

    def may_follow(self, workflow_id: str) -> bool:
        """Tell whether one more client may follow a stream; not if too many do already."""
        followers = self._followers
        return followers[workflow_id] < MAX_FOLLOWERS_OF_ONE and followers.total() < MAX_FOLLOWERS

    async def read_on(
        self, workflow_id: str, after: int, end: int | None
    ) -> tuple[list[ChunkRecord], bool]:
        """Return the next chunks after an offset, and whether there are no more now.

        Args:
            workflow_id: The stream's workflow.
            after: The offset.
            end: The end of the stream, if it is complete.

        Raises:
            StreamLostError: The chunks have expired.
        """
        if end is not None:
            page = await self.page_of(workflow_id, after, end)
            return page, after >= end or page[-1].end_offset >= end
        page = await self._read(workflow_id, after)
        last = page[-1].end_offset if page else after
        return page, not page or not await self._page(workflow_id, last)

    async def page_of(self, workflow_id: str, after: int, end: int) -> list[ChunkRecord]:
        """Return the next chunks of a complete stream after an offset; none at its end.

        Raises:
            StreamLostError: The chunks have expired.
        """
        if after >= end:
            return []
        page = await self._read(workflow_id, after, end)
        last = page[-1].end_offset if page else after
        if not page or last < end <= after + PAGE_BYTES:
            raise await self.why_missing(workflow_id, end)
        return page

    async def why_missing(self, workflow_id: str, end: int) -> StreamLostError | StreamDamagedError:
        """Return why chunks of a complete stream are missing."""
        response = await self._storage.get_response(workflow_id)
        if response is None or response.is_tombstone or response.stream_end != end:
            return StreamLostError()
        return StreamDamagedError(f"it ends at {end}, and its last chunks are missing")

    async def _read(
        self, workflow_id: str, after: int, end: int | None = None
    ) -> list[ChunkRecord]:
        page = await self._page(workflow_id, after)
        check_chunks(page, after, end)
        return page

    def _page(self, workflow_id: str, after: int) -> Awaitable[list[ChunkRecord]]:
        return read_chunks(self._storage, self._sealer, workflow_id, after)

    async def tail_of(self, workflow_id: str, after: int) -> int:
        """Return the last offset of a stream for now, at or after another."""
        while page := await self._read(workflow_id, after):
            after = page[-1].end_offset
        return after

    async def replay(
        self, workflow_id: str, page: list[ChunkRecord], end: int
    ) -> AsyncGenerator[ChunkRecord, None]:
        """Yield the chunks of a complete stream.

        Args:
            workflow_id: The stream's workflow.
            page: The first chunks, see :meth:`page_of`.
            end: The end of the stream.

        Raises:
            StreamLostError: The chunks have expired.
        """
        while page:
            for chunk in page:
                yield chunk
            page = await self.page_of(workflow_id, page[-1].end_offset, end)

    async def follow(
        self, workflow_id: str, after: int, has_left: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[ChunkRecord, None]:
        """Yield the chunks after an offset, and new ones as they come.

        Args:
            workflow_id: The stream's workflow.
            after: The offset.
            has_left: Tells whether the follower has disconnected, which ends the generator. Called
                before each read, at least four times a second.

        Raises:
            StreamLostError: The request was interrupted, or the stream is not stored.
        """
        backoff = Backoff(FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS)
        end, is_over = None, False
        with self._following(workflow_id) as waiter:
            while not has_left():
                page = await self._read(workflow_id, after, end)
                if any(chunk.cut_to == CUT_FOR_GOOD for chunk in page):
                    raise StreamLostError
                for chunk in page:
                    yield chunk
                    after = chunk.end_offset
                if end is not None and after >= end:
                    return
                if page:
                    backoff.reset()
                    continue
                # Invariant: read once more when the request is known to be over. The last chunks
                # may have come in between.
                if is_over:
                    raise (
                        StreamLostError if end is None else await self.why_missing(workflow_id, end)
                    )
                end, is_over = await self._state(workflow_id)
                if not is_over:
                    await waiter.wait(backoff.next())

    @contextmanager
    def _following(self, workflow_id: str) -> Iterator[Waiter]:
        self._followers[workflow_id] += 1
        try:
            with self._result_waiters.watching(workflow_id) as waiter:
                yield waiter
        finally:
            self._followers[workflow_id] -= 1
            if not self._followers[workflow_id]:
                del self._followers[workflow_id]

    async def _state(self, workflow_id: str) -> tuple[int | None, bool]:
        """Return the end of a stream, if it is known, and whether nothing more is recorded."""
        progress = await self._storage.get_progress(workflow_id)
        if progress is None:
            return None, True
        if progress.workflow.is_final:
            response = await self._storage.get_response(workflow_id)
            return (response.stream_end if response is not None else None), True
        if progress.is_owned:
            self._result_waiters.ask(progress.workflow)
        return None, not progress.is_owned


async def read_chunks(
    storage: StepLog, sealer: Sealer, workflow_id: str, after: int
) -> list[ChunkRecord]:
    """Return a page of a stream's chunks after an offset, opened.

    Raises:
        StreamDamagedError: A chunk cannot be read.
        EncryptionKeyMissingError: A chunk is encrypted with a key that this process does not have.
        StorageError: The storage failed.
    """
    try:
        return [_opened(chunk, sealer) for chunk in await storage.read_chunks(workflow_id, after)]
    except DamagedRowError as error:
        raise StreamDamagedError(str(error)) from error


def _opened(chunk: ChunkRecord, sealer: Sealer) -> ChunkRecord:
    try:
        data = sealer.open_bytes(chunk.data, PIECE)
    except EncryptionKeyMissingError:
        raise
    except DecodeError as error:
        where = f"which ends at {chunk.end_offset} in the stream of request {chunk.workflow_id}"
        logger.error("A chunk cannot be read, %s: %s", where, error)
        # Its place is taken, and without its data it fits nowhere: readers find it damaged.
        return replace(chunk, cut_to=None, data=b"")
    return chunk if data is chunk.data else replace(chunk, data=data)


def check_chunks(chunks: Iterable[ChunkRecord], after: int, end: int | None) -> None:
    """Check the chunks of one read.

    Args:
        chunks: The chunks, in order.
        after: The offset that they were read after; it may be within the first chunk.
        end: The end of the stream, if it is complete.

    Raises:
        StreamDamagedError: A chunk is missing in between, or cannot belong to this stream.
    """
    position, is_first = after, True
    for chunk in chunks:
        if not fits(chunk, position, is_first=is_first):
            msg = f"the chunk that ends at {chunk.end_offset!r} does not follow offset {position}"
            raise StreamDamagedError(msg)
        position, is_first = chunk.end_offset, False
    if end is not None and position > max(after, end):
        msg = f"it ends at {end}, and there is a chunk that ends at {position}"
        raise StreamDamagedError(msg)


def checked_start(chunks: list[ChunkRecord]) -> ChunkRecord | None:
    """Return the start of a stream from its first chunks; ``None`` if nothing is recorded.

    Raises:
        StreamDamagedError: They do not begin with a start.
    """
    if not chunks or chunks[0].cut_to == CUT_FOR_GOOD:
        return None
    if chunks[0].cut_to != CUT_ALL or not _is_readable(chunks[0]):
        msg = "its start is missing"
        raise StreamDamagedError(msg)
    return chunks[0]


def fits(chunk: ChunkRecord, position: int, *, is_first: bool = False) -> bool:
    """Tell whether a chunk can be the next one after an offset.

    A cut leaves a gap after the offset that it cuts back to, and is recorded at the gap's end.

    Args:
        chunk: The next recorded chunk.
        position: The offset.
        is_first: True if the reader asked for the offset: it may be in the middle of a chunk, or
            within a gap.
    """
    if not _is_readable(chunk):
        return False
    begin = chunk.cut_to if chunk.cut_to is not None else chunk.end_offset - len(chunk.data)
    return begin <= position if is_first else begin == position


def _is_readable(chunk: ChunkRecord) -> bool:
    # SQLite accepts a value of any type in any column.
    return (
        isinstance(chunk.end_offset, int)
        and isinstance(chunk.data, bytes)
        and (chunk.cut_to is None or isinstance(chunk.cut_to, int))
    )
