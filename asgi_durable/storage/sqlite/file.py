"""A SQLite database file: its URL, its settings and its write transactions."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.sqlite.temporary_folder import TemporaryFolder

__all__ = ["CHECKPOINTS_ITSELF", "SQLiteFile", "write_transaction"]

WAL_RETRY_SECONDS = 0.005
# `sqlite://`, and what SQLAlchemy reads as the same.
_IN_MEMORY = ("", "/:memory:")
SYNCHRONOUS_LEVELS = ("EXTRA", "FULL", "NORMAL", "OFF")

# Before 3.51.3 a commit that resets the log while another connection checkpoints it may damage
# the database (https://sqlite.org/wal.html#walresetbug). There our connections never checkpoint
# by themselves; see `sqlite_checkpoints`.
CHECKPOINTS_ITSELF = sqlite3.sqlite_version_info >= (3, 51, 3)


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
        folder: Where the file is, if it is to be gone with its use.
    """

    path: Path
    synchronous: str = "FULL"
    busy_timeout_seconds: float = 5.0
    folder: TemporaryFolder | None = None

    @classmethod
    def from_url(cls, url: str) -> SQLiteFile:
        """Read ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` with its parameters.

        Parameters are ``synchronous`` and ``busy_timeout`` (seconds), as in
        ``sqlite:///orders.db?synchronous=NORMAL``. ``sqlite://`` is a new database at each
        call, for this process alone, and gone with its use. It is a file all the same: a
        database in SQLite's memory has no write-ahead log, and its connections no patience
        with each other.

        Raises:
            DurableUsageError: The URL names no file, or a parameter is not understood.
        """
        parts = urlsplit(url)
        path = unquote(parts.path)[1:]
        is_temporary = parts.path in _IN_MEMORY
        if parts.netloc or not (path or is_temporary):
            msg = f"{url!r} names no file; write sqlite:///relative.db or sqlite:////absolute.db"
            raise DurableUsageError(msg)
        settings = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        synchronous = settings.pop("synchronous", "OFF" if is_temporary else "FULL").upper()
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
        folder = TemporaryFolder() if is_temporary else None
        return cls(
            path=folder.path / "memory.db" if folder is not None else Path(path),
            synchronous=synchronous,
            busy_timeout_seconds=seconds,
            folder=folder,
        )

    def discard(self) -> None:
        """Delete the file, if it is to be gone with its use."""
        if self.folder is not None:
            self.folder.delete()

    @property
    def name(self) -> str:
        """The file's whole path, for messages."""
        return "SQLite in memory" if self.folder is not None else f"SQLite {self.path.absolute()}"

    def beside(self, suffix: str) -> Path:
        """Return the path of a file that belongs to the database, next to it."""
        return self.path.with_name(f"{self.path.name}-{suffix}")

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
        self._switch_to_wal(cursor)
        cursor.execute(f"PRAGMA synchronous={self.synchronous}")
        cursor.execute("PRAGMA trusted_schema=OFF")
        if not CHECKPOINTS_ITSELF:
            cursor.execute("PRAGMA wal_autocheckpoint=0")

    def _switch_to_wal(self, cursor: sqlite3.Cursor) -> None:
        # Where two open a new file at once, SQLite refuses one of them without any waiting.
        give_up_at = time.monotonic() + self.busy_timeout_seconds
        while True:
            try:
                cursor.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(WAL_RETRY_SECONDS)
            else:
                return


@contextmanager
def write_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end, roll back on any exception."""
    # IMMEDIATE: a deferred transaction that turns to writing fails at once where it
    # meets another writer, without waiting for the busy timeout.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
