"""A SQLite database file: its URL, settings, connections and write transactions."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from asgi_durable.errors import DurableUsageError, StorageError
from asgi_durable.storage.urls import fixed_url, shown, sqlite_file, working_folder

__all__ = ["CHECKPOINTS_ITSELF", "SQLiteFile", "TemporaryFolder", "write_transaction"]

WAL_RETRY_SECONDS = 0.005
SYNCHRONOUS_LEVELS = ("EXTRA", "FULL", "NORMAL", "OFF")
# SQLite counts milliseconds in an int.
LONGEST_BUSY_TIMEOUT_SECONDS = 2_147_483

# Before 3.51.3 a commit that resets the log while another connection makes a checkpoint may damage
# the database (https://sqlite.org/wal.html#walresetbug). With such a version our connections make
# no checkpoints by themselves; see `SQLiteCheckpoints`.
CHECKPOINTS_ITSELF = sqlite3.sqlite_version_info >= (3, 51, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLiteFile:
    """A database file and its settings.

    Attributes:
        path: The absolute path of the file, without symbolic links. SQLite puts the write-ahead
            log beside the file, and the lock files of executors are there too, so that all
            processes find the same ones.
        synchronous: The events that a commit survives. ``FULL``, the default: a crash of the
            process and a loss of power. ``NORMAL``: a crash of the process; a loss of power may
            undo the last commits. ``OFF``: a crash of the process; a loss of power may damage
            the file. ``EXTRA``: as ``FULL``, in every journal mode.
        busy_timeout_seconds: How long a statement waits for the lock of another process.
        folder: The folder of a temporary file, which is deleted after its use.
        former_path: The path that earlier versions read from the URL, if it is another one.
    """

    path: Path
    synchronous: str = "FULL"
    busy_timeout_seconds: float = 5.0
    folder: TemporaryFolder | None = None
    former_path: Path | None = None

    @classmethod
    def from_url(cls, url: str) -> SQLiteFile:
        """Read ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` with its parameters.

        Parameters are ``synchronous`` and ``busy_timeout`` (seconds), as in
        ``sqlite:///orders.db?synchronous=NORMAL``. ``sqlite://`` is a new database at each
        call, for this process alone, and is deleted after its use. It is a file too: a database
        in SQLite's memory has no write-ahead log, and its connections do not wait for each other.

        Raises:
            DurableUsageError: The URL names no file, or a parameter is not understood.
        """
        fixed = fixed_url(url, working_folder())
        file, query = sqlite_file(fixed)
        settings = dict(parse_qsl(query, keep_blank_values=True))
        synchronous = settings.pop("synchronous", "FULL" if file else "OFF")
        busy_timeout = settings.pop("busy_timeout", "5")
        if synchronous.upper() not in SYNCHRONOUS_LEVELS:
            msg = f"synchronous must be one of {', '.join(SYNCHRONOUS_LEVELS)}; got {synchronous!r}"
            raise DurableUsageError(msg)
        if settings:
            msg = (
                f"{shown(url)!r}: unknown parameter {next(iter(settings))!r}; "
                "there are synchronous and busy_timeout"
            )
            raise DurableUsageError(msg)
        folder = None if file else TemporaryFolder()
        # Invariant: links are resolved once, here. Later they may point to another file.
        path = _real_path(file if folder is None else str(folder.path / "memory.db"))
        return cls(
            path=path,
            synchronous=synchronous.upper(),
            busy_timeout_seconds=_busy_timeout(busy_timeout),
            folder=folder,
            former_path=_former_path(fixed),
        )

    def check(self) -> None:
        """Check the path before the file is opened.

        Raises:
            StorageError: The folder does not exist, or the file must not be used.
        """
        try:
            if not self.path.parent.is_dir():
                msg = f"{self.path}: the folder {self.path.parent} does not exist"
                raise StorageError(msg)
            names = self.path.stat().st_nlink if self.path.is_file() else 1
        except OSError as error:
            msg = f"{self.path}: {error}"
            raise StorageError(msg) from error
        if names > 1:
            msg = (
                f"{self.path} has {names} names (hard links): processes that open it by different "
                "ones would not know of each other, and damage it. Delete the other names, or "
                "make them symbolic links"
            )
            raise StorageError(msg)
        if not self.path.exists() and self.former_path is not None and self.former_path.is_file():
            msg = (
                f"{self.path} does not exist, but {self.former_path}, which earlier versions used "
                "for this URL, as they ended a path at '#'. Stop all processes and rename it, "
                "together with its -wal file, or change the URL"
            )
            raise StorageError(msg)

    def discard(self) -> None:
        """Delete the file, if it is temporary."""
        if self.folder is not None:
            self.folder.delete()

    @property
    def name(self) -> str:
        """The name of the database for messages, with the whole path."""
        return "SQLite in memory" if self.folder is not None else f"SQLite {self.path.absolute()}"

    def beside(self, suffix: str) -> Path:
        """Return the path of a file that belongs to the database, next to it."""
        return self.path.with_name(f"{self.path.name}-{suffix}")

    def connect(self) -> sqlite3.Connection:
        """Open a connection in autocommit mode: its user begins transactions by statements.

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
        """Apply the settings to a new connection."""
        self._switch_to_wal(cursor)
        for setting in self.settings(sys.platform):
            cursor.execute(f"PRAGMA {setting}")

    def settings(self, platform: str) -> list[str]:
        """Return the PRAGMA settings of each connection.

        Args:
            platform: The platform, as in ``sys.platform``.
        """
        settings = [f"synchronous={self.synchronous}", "trusted_schema=OFF"]
        if platform == "darwin":
            # A plain fsync on macOS leaves data in the disk's cache, which a loss of power clears.
            settings += ["fullfsync=ON", "checkpoint_fullfsync=ON"]
        if not CHECKPOINTS_ITSELF:
            settings.append("wal_autocheckpoint=0")
        return settings

    def _switch_to_wal(self, cursor: sqlite3.Cursor) -> None:
        # If two connections open a new file at once, SQLite refuses one of them without waiting.
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
    # IMMEDIATE: a deferred transaction that begins to write while another one writes fails at
    # once, without waiting for the busy timeout.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _busy_timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_BUSY_TIMEOUT_SECONDS:
        msg = (
            f"busy_timeout must be a number of seconds from 0 to {LONGEST_BUSY_TIMEOUT_SECONDS}, "
            f"as in sqlite:///orders.db?busy_timeout=5; got {text!r}"
        )
        raise DurableUsageError(msg)
    return seconds


def _former_path(url: str) -> Path | None:
    """Return the path as earlier versions read it, up to a ``#``; ``None`` without a ``#``."""
    parts = urlsplit(url)
    return _real_path(unquote(parts.path)[1:]) if parts.fragment else None


def _real_path(file: str) -> Path:
    # Normalised first, as SQLAlchemy's engines do: `..` is applied before links are followed.
    return Path(os.path.realpath(os.path.normpath(Path(file).absolute())))


class TemporaryFolder:
    """A new folder, deleted by :meth:`delete`, with this object, or at the end of the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="asgi-durable-"))
        # Not `TemporaryDirectory`: it warns if the folder is not deleted explicitly, as with a
        # test client that runs no lifespan.
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def delete(self) -> None:
        """Delete the folder, if it still exists."""
        self._finalizer()
