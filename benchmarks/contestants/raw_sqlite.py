"""The limits on SQLite: WAL, ``synchronous=FULL``, one thread with one connection."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from asgi_durable import Durable
from asgi_durable.storage import tables
from benchmarks.contestants.group_commit import GroupCommit
from benchmarks.contestants.raw_rows import (
    END_COLUMNS,
    STEP_COLUMNS,
    WORKFLOW_COLUMNS,
    RawContestant,
    Writes,
    folded,
)

__all__ = ["RawEach", "RawGroup"]


def _insert(table: str, names: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


INSERT_WORKFLOW = _insert(tables.workflows.name, WORKFLOW_COLUMNS)
INSERT_STEP = _insert(tables.steps.name, STEP_COLUMNS)
END_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET "
    f"{', '.join(f'{name} = ?' for name in END_COLUMNS[:-1])} WHERE {END_COLUMNS[-1]} = ?"
)


class RawEach(RawContestant):
    """One transaction for each moment of each workflow: nothing is shared."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def open(self) -> None:
        await Durable(self._url).migrate()
        self._connection = sqlite3.connect(
            self._url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")

    async def close(self) -> None:
        self._thread.shutdown()
        self._connection.close()

    async def commit(self, writes: Writes) -> None:
        await self._commit_all([writes])

    async def _commit_all(self, batch: Sequence[Writes]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)

    def _write(self, batch: Sequence[Writes]) -> None:
        starts = [
            writes.start if writes.end is None else folded(writes.start, writes.end)
            for writes in batch
            if writes.start is not None
        ]
        steps = [writes.step for writes in batch if writes.step is not None]
        ends = [writes.end for writes in batch if writes.end is not None and writes.start is None]
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for statement, rows in (
            (INSERT_WORKFLOW, starts),
            (INSERT_STEP, steps),
            (END_WORKFLOW, ends),
        ):
            if rows:
                self._connection.executemany(statement, rows)
        execute("COMMIT")


class RawGroup(RawEach):
    """One transaction for whatever all workflows have to commit: ``executemany``, no timer."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._group = GroupCommit(self._commit_all)

    async def commit(self, writes: Writes) -> None:
        await self._group.submit(writes)
