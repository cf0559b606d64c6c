"""A lock that the kernel gives up when its process dies."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

__all__ = ["ProcessLock"]


class ProcessLock:
    """An exclusive lock on a small file, taken through SQLite itself.

    So it works wherever SQLite does, and several in one process do not disturb each other,
    as plain POSIX locks would.

    Args:
        path: The small file.
        database: Whoever may use this file may look at the lock.
    """

    def __init__(self, path: Path, *, database: Path) -> None:
        self.path = path
        self._database = database
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
        connection = _lock(self.path)
        self._connection = connection
        if connection is not None:
            # As SQLite does for its own files; other users could not look at it else.
            with contextlib.suppress(OSError):
                self.path.chmod(self._database.stat().st_mode & 0o666)
        return connection is not None

    def is_held(self) -> bool:
        """Tell whether anybody holds the lock; nobody does where the file is missing.

        Where it cannot be told, because the file belongs to another user say, somebody may.
        """
        if not self.path.exists():
            return False
        try:
            with contextlib.closing(_reading(self.path)) as connection:
                # A shared lock, for which reading is enough.
                connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        except sqlite3.Error:
            return True
        return False

    def release(self) -> None:
        """Give the lock up; nothing happens if it is not held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def remove(self) -> None:
        """Delete the file, after :meth:`release`; one that cannot be deleted says nothing.

        In a sticky folder the file of another user's process stays, and on Windows one that
        somebody looks at just then.
        """
        with contextlib.suppress(OSError):
            self.path.unlink()


def _lock(path: Path) -> sqlite3.Connection | None:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
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


def _reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", timeout=0, uri=True)
