"""A SQLite database file: its URL, its settings, and who may use it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from asgi_durable.errors import DurableUsageError, StorageError
from asgi_durable.storage.sqlite_errors import naming_errors

__all__ = ["SQLiteFile", "SQLiteFileLock"]

SYNCHRONOUS_LEVELS = ("EXTRA", "FULL", "NORMAL", "OFF")


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLiteFile:
    """A database file and how it is used.

    Attributes:
        path: The file; relative to the working directory unless absolute.
        synchronous: What an acknowledged commit survives. ``FULL``, the default: a crash of
            the process and a loss of power. ``NORMAL``: a crash of the process; a loss of
            power may take back the last commits. ``OFF``: the same, and a loss of power may
            damage the file. ``EXTRA``: as ``FULL``, in every journal mode.
        busy_timeout_seconds: How long a statement waits for another process's lock.
    """

    path: Path
    synchronous: str = "FULL"
    busy_timeout_seconds: float = 5.0

    @classmethod
    def from_url(cls, url: str) -> SQLiteFile:
        """Read ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` with its parameters.

        Parameters are ``synchronous`` and ``busy_timeout`` (seconds), as in
        ``sqlite:///orders.db?synchronous=NORMAL``.

        Raises:
            DurableUsageError: The URL names no file, or a parameter is not understood.
        """
        parts = urlsplit(url)
        path = unquote(parts.path)[1:]
        if parts.netloc or not path or path == ":memory:":
            msg = f"{url!r} names no file; write sqlite:///relative.db or sqlite:////absolute.db"
            raise DurableUsageError(msg)
        settings = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        synchronous = settings.pop("synchronous", "FULL").upper()
        busy_timeout = settings.pop("busy_timeout", "5")
        if synchronous not in SYNCHRONOUS_LEVELS:
            msg = f"synchronous must be one of {', '.join(SYNCHRONOUS_LEVELS)}; got {synchronous!r}"
            raise DurableUsageError(msg)
        if settings:
            msg = f"{url!r}: unknown parameter {next(iter(settings))!r}"
            raise DurableUsageError(msg)
        try:
            seconds = float(busy_timeout)
        except ValueError:
            msg = f"busy_timeout must be a number of seconds; got {busy_timeout!r}"
            raise DurableUsageError(msg) from None
        return cls(path=Path(path), synchronous=synchronous, busy_timeout_seconds=seconds)

    def connect(self) -> sqlite3.Connection:
        """Open a connection that leaves transactions to its user.

        Raises:
            sqlite3.Error: The file cannot be opened, or is no database.
        """
        connection = sqlite3.connect(
            self.path,
            timeout=self.busy_timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self.configure(connection.cursor())
        except BaseException:
            connection.close()
            raise
        return connection

    def configure(self, cursor: sqlite3.Cursor) -> None:
        """Set up a new connection."""
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={self.synchronous}")
        cursor.execute("PRAGMA trusted_schema=OFF")


class SQLiteFileLock:
    """Keeps a database file for one process, until it closes or dies.

    It is a lock on a small file beside the database, taken through SQLite itself, so it
    works wherever SQLite does, and the kernel gives it up when the process dies.
    """

    def __init__(self, file: SQLiteFile) -> None:
        self._path = file.path.with_name(file.path.name + "-owner")
        self._database = file.path
        self._timeout = file.busy_timeout_seconds
        self._connection: sqlite3.Connection | None = None

    def acquire(self) -> None:
        """Take the lock, waiting for a process that is just leaving.

        Raises:
            StorageError: Another process, or another ``Durable``, uses the database.
        """
        with naming_errors(str(self._path)):
            connection = sqlite3.connect(
                self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
        try:
            # Nothing is ever written, so there is nothing to roll back from a file.
            connection.execute("PRAGMA journal_mode=MEMORY")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            connection.close()
            msg = (
                f"{self._database} is in use by another process: "
                f"a SQLite file serves one process at a time ({error})"
            )
            raise StorageError(msg) from error
        self._connection = connection

    def release(self) -> None:
        """Give the lock up; nothing happens if it is not held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
