"""Moving the write-ahead log into the database, by one process at a time."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from asgi_durable.storage.sqlite.file import CHECKPOINTS_ITSELF, SQLiteFile
from asgi_durable.storage.sqlite.lock import ProcessLock

__all__ = ["SQLiteCheckpoints"]


class SQLiteCheckpoints:
    """Checkpoints now and then, where SQLite had better not do it by itself.

    Args:
        file: The database.
        writer: The connection that writes here; idle when :meth:`checkpoint_if_due` is called.
    """

    def __init__(self, file: SQLiteFile, writer: sqlite3.Connection) -> None:
        self._writer = writer
        self._log = file.beside("wal")
        self._lock = ProcessLock(file.beside("checkpointer"), database=file.path)
        self._connection = None if CHECKPOINTS_ITSELF else file.connect()
        self._last_seen: tuple[int, int] | None = None

    def checkpoint_if_due(self) -> None:
        """Checkpoint if something was written since, unless another process does that.

        Raises:
            sqlite3.Error: The database is locked, or failed.
        """
        if self._connection is None or self._seen() == self._last_seen:
            return
        if not self._lock.is_mine and not self._lock.try_acquire():
            return
        # Invariant: under the write lock, so that no commit of any process resets the log
        # while it is being moved. That race is the bug of SQLite before 3.51.3.
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._last_seen = self._seen()
        finally:
            self._writer.execute("ROLLBACK")

    def close(self) -> None:
        """Leave it to another process."""
        self._lock.release()
        if self._connection is not None:
            self._connection.close()

    def _seen(self) -> tuple[int, int] | None:
        return _size_and_time(self._log)


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
