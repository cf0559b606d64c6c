"""A lock that the kernel gives up when its process dies."""

from __future__ import annotations

import sqlite3
from pathlib import Path

__all__ = ["ProcessLock"]


class ProcessLock:
    """An exclusive lock on a small file, taken through SQLite itself.

    So it works wherever SQLite does, and several in one process do not disturb each other,
    as plain POSIX locks would.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    @property
    def is_mine(self) -> bool:
        """True while this object holds the lock."""
        return self._connection is not None

    def try_acquire(self) -> bool:
        """Take the lock, creating the file; return False if somebody has it.

        Raises:
            sqlite3.Error: The file cannot be written.
        """
        connection = _lock(str(self.path), uri=False)
        self._connection = connection
        return connection is not None

    def is_held(self) -> bool:
        """Tell whether anybody holds the lock; nobody does where the file is missing.

        Raises:
            sqlite3.Error: It cannot be told.
        """
        if not self.path.exists():
            return False
        connection = _lock(f"{self.path.absolute().as_uri()}?mode=rw", uri=True)
        if connection is None:
            return True
        connection.close()
        return False

    def release(self) -> None:
        """Give the lock up; nothing happens if it is not held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _lock(database: str, *, uri: bool) -> sqlite3.Connection | None:
    connection = sqlite3.connect(
        database, timeout=0, isolation_level=None, check_same_thread=False, uri=uri
    )
    try:
        # Nothing is ever written, so there is nothing to roll back from a file.
        connection.execute("PRAGMA journal_mode=MEMORY")
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            return None
        raise
    return connection
