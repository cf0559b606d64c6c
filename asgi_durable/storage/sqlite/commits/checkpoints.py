"""Checkpoints: move the write-ahead log into the database file, in one process at a time."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from asgi_durable.storage.sqlite.file import CHECKPOINTS_ITSELF, SQLiteFile
from asgi_durable.storage.sqlite.locks import ProcessLock

__all__ = ["SQLiteCheckpoints"]


class SQLiteCheckpoints:
    """Makes checkpoints with versions of SQLite that must not make them by themselves.

    Args:
        file: The database.
        writer: The connection that writes; it has no open transaction when
            :meth:`checkpoint_if_due` is called.
    """

    def __init__(self, file: SQLiteFile, writer: sqlite3.Connection) -> None:
        self._writer = writer
        self._log = file.beside("wal")
        self._lock = ProcessLock(file.beside("checkpointer"), database=file.path)
        self._connection = None if CHECKPOINTS_ITSELF else file.connect()
        # Size and time of the write-ahead log after the last checkpoint.
        self._last_state: tuple[int, int] | None = None

    def checkpoint_if_due(self) -> None:
        """Checkpoint if the log has changed since the last time, unless another process does so.

        Raises:
            sqlite3.Error: The database is locked, or failed.
        """
        if self._connection is None or _size_and_time(self._log) == self._last_state:
            return
        if not self._lock.is_mine and not self._lock.try_acquire():
            return
        # Invariant: this runs under the write lock, so that no commit of any process resets the
        # log during the checkpoint. SQLite before 3.51.3 has a bug in that race.
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._last_state = _size_and_time(self._log)
        finally:
            self._writer.execute("ROLLBACK")

    def close(self) -> None:
        """Let another process make the checkpoints."""
        self._lock.release()
        if self._connection is not None:
            self._connection.close()


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
