"""Group commit by hand: while one commit is in flight, the next batch gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.contestants.raw_rows import Writes

__all__ = ["GroupCommit"]


class GroupCommit:
    """Commits what all callers have to write, one batch at a time.

    Args:
        write: Commits a batch.
    """

    def __init__(self, write: Callable[[Sequence[Writes]], Awaitable[object]]) -> None:
        self._write = write
        self._pending: list[tuple[Writes, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, writes: Writes) -> asyncio.Future[None]:
        """Return a future that is done once the rows are durable."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((writes, settled))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._drain())
        return settled

    async def _drain(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                await self._write([writes for writes, _ in batch])
            except Exception as error:
                for _, settled in batch:
                    settled.set_exception(error)
                continue
            for _, settled in batch:
                settled.set_result(None)
