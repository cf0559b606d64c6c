"""Answers that are recorded as streams: one run appends to them, and others read meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from asgi_durable.engine.endings import RunStopped
from asgi_durable.engine.outcomes import Outcomes, Waiter
from asgi_durable.engine.run import Run
from asgi_durable.errors import StorageError
from asgi_durable.storage.protocol import PAGE_BYTES, StepLog
from asgi_durable.storage.records import CUT_ALL, CUT_FOR_GOOD, PieceRecord
from asgi_durable.storage.writes import RecordPiece

__all__ = ["StreamLog", "StreamLostError", "Streams"]

# How many follow streams that are not complete, in this process.
MAX_FOLLOWERS = 1000
MAX_FOLLOWERS_OF_ONE = 256
FIRST_POLL_SECONDS = 0.025
LONGEST_POLL_SECONDS = 0.25


class StreamLostError(Exception):
    """Nothing more is recorded of a stream, and what there is of it is not the whole."""


class StreamLog:
    """What a request's handler records its answer with, piece by piece.

    Args:
        run: The request's.
        on_grown: Called with the workflow's id once a piece is durable.
    """

    def __init__(self, run: Run, on_grown: Callable[[str], None]) -> None:
        self._run = run
        self._on_grown = on_grown

    @property
    def workflow_id(self) -> str:
        """The request's id."""
        return self._run.workflow_id

    @property
    def created_at_us(self) -> int:
        """When the request was claimed; another one with its key has another time."""
        return self._run.workflow.created_at_us

    @property
    def is_stopped(self) -> bool:
        """True once nothing is recorded any more."""
        return self._run.interruption() is not None

    async def read(self, after: int) -> list[PieceRecord]:
        """Return the next pieces that earlier executions have recorded; see ``StepLog``.

        Raises:
            RunStopped: The storage failed.
        """
        try:
            return await self._run.services.storage.read_pieces(self.workflow_id, after)
        except StorageError as error:
            raise self._run.stop(error, goes_on=True) from error

    async def record(self, *pieces: PieceRecord) -> None:
        """Make pieces durable, and all that was recorded before them.

        Raises:
            RunStopped: The run must not go on, or is over.
        """
        run = self._run
        if run.closed:
            raise RunStopped
        run.refuse_if_stopped()
        for piece in pieces:
            run.submit(RecordPiece(piece, run.executor_id))
        await run.settle()
        self._on_grown(self.workflow_id)


class Streams:
    """Reads recorded streams, whoever records them.

    Args:
        storage: Where they are.
        outcomes: Tells when to look again.
    """

    def __init__(self, storage: StepLog, outcomes: Outcomes) -> None:
        self._storage = storage
        self._outcomes = outcomes
        self._followers: Counter[str] = Counter()

    async def start_of(self, workflow_id: str) -> PieceRecord | None:
        """Return a stream's start, ``None`` if nothing is recorded.

        Raises:
            StorageError: The storage failed.
        """
        # From so far in front that the page ends with it, wherever it is.
        page = await self._storage.read_pieces(workflow_id, -PAGE_BYTES)
        return page[0] if page and page[0].cut_to == CUT_ALL else None

    def may_follow(self, workflow_id: str) -> bool:
        """Return False if too many follow streams already."""
        followers = self._followers
        return followers[workflow_id] < MAX_FOLLOWERS_OF_ONE and followers.total() < MAX_FOLLOWERS

    async def read_on(
        self, workflow_id: str, after: int, end: int | None
    ) -> tuple[list[PieceRecord], bool]:
        """Return the next pieces behind an offset, and whether there are no more now.

        Args:
            workflow_id: Whose stream.
            after: The offset.
            end: Where the stream ends, if it is complete.

        Raises:
            StreamLostError: They have expired.
            StorageError: The storage failed.
        """
        if end is not None and after >= end:
            return [], True
        page = await self._storage.read_pieces(workflow_id, after)
        if not page and end is not None:
            raise StreamLostError
        last = page[-1].end_offset if page else after
        if end is not None:
            return page, last >= end
        return page, not page or not await self._storage.read_pieces(workflow_id, last)

    async def tail_of(self, workflow_id: str, after: int) -> int:
        """Return the last offset of a stream for now, at or behind another.

        Raises:
            StorageError: The storage failed.
        """
        while page := await self._storage.read_pieces(workflow_id, after):
            after = page[-1].end_offset
        return after

    async def replay(
        self, workflow_id: str, after: int, end: int
    ) -> AsyncGenerator[PieceRecord, None]:
        """Yield the pieces of a complete stream behind an offset.

        Raises:
            StreamLostError: They have expired.
            StorageError: The storage failed.
        """
        while after < end:
            page = await self._storage.read_pieces(workflow_id, after)
            if not page:
                raise StreamLostError
            for piece in page:
                yield piece
            after = page[-1].end_offset

    async def follow(self, workflow_id: str, after: int) -> AsyncGenerator[PieceRecord, None]:
        """Yield the pieces behind an offset, those that are not there yet as they come.

        Raises:
            StreamLostError: The request was interrupted, or the stream is not kept.
            StorageError: The storage failed.
        """
        delay, end, is_over = FIRST_POLL_SECONDS, None, False
        with self._following(workflow_id) as waiter:
            while True:
                page = await self._storage.read_pieces(workflow_id, after)
                if any(piece.cut_to == CUT_FOR_GOOD for piece in page):
                    raise StreamLostError
                for piece in page:
                    yield piece
                    after, delay = piece.end_offset, FIRST_POLL_SECONDS
                if end is not None and after >= end:
                    return
                if page:
                    continue
                # Invariant: read once more when it is known to be over. The last pieces may have
                # come in between.
                if is_over:
                    raise StreamLostError
                end, is_over = await self._state(workflow_id)
                if not is_over:
                    await waiter.wait(delay)
                    delay = min(delay * 2, LONGEST_POLL_SECONDS)

    @contextmanager
    def _following(self, workflow_id: str) -> Iterator[Waiter]:
        self._followers[workflow_id] += 1
        try:
            with self._outcomes.watching(workflow_id) as waiter:
                yield waiter
        finally:
            self._followers[workflow_id] -= 1
            if not self._followers[workflow_id]:
                del self._followers[workflow_id]

    async def _state(self, workflow_id: str) -> tuple[int | None, bool]:
        """Return where a stream ends, if that is known, and whether nothing more is recorded."""
        progress = await self._storage.get_progress(workflow_id)
        if progress is None:
            return None, True
        if progress.workflow.is_final:
            response = await self._storage.get_response(workflow_id)
            return (response.stream_end if response is not None else None), True
        if progress.is_owned:
            self._outcomes.ask(progress.workflow)
        return None, not progress.is_owned
