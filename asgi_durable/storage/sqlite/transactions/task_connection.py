"""The driver's connections for transactions in tasks, which may be cancelled anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

__all__ = ["TaskConnection", "interrupt", "task_connection_of", "until_it_is_over"]

POLL_SECONDS = 0.001


class TaskConnection(sqlite3.Connection):
    """A connection whose transaction is over once it is closed.

    SQLite keeps a connection that is closed while rows of a statement can be read still, with its
    transaction and the file's write lock. Where a task is cancelled such a statement stays until
    the garbage collector finds it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()
        self._is_ending = False
        self._may_begin = False

    @property
    def holds_lock(self) -> bool:
        """True while a transaction begins, is open, or is being ended; callable on any thread."""
        try:
            # Invariant: in this order. SQLite calls it over before the lock is free.
            return self._may_begin or self.in_transaction or self._is_ending
        except sqlite3.ProgrammingError:
            # It is closed.
            return False

    def begins(self) -> None:
        """Take note that a transaction will begin, in the connection's thread.

        Who is cancelled meanwhile cannot tell whether it has: not before the thread has ended it.
        """
        self._may_begin = True

    def has_begun(self) -> None:
        """Take note that it has."""
        self._may_begin = False

    def commit(self) -> None:
        """See ``sqlite3.Connection``."""
        with self._ending():
            super().commit()

    def rollback(self) -> None:
        """See ``sqlite3.Connection``."""
        with self._ending():
            super().rollback()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        self._is_ending = True
        try:
            yield
        finally:
            self._may_begin = self._is_ending = False

    def cursor(self, *args: Any, **options: Any) -> Any:
        """See ``sqlite3.Connection``."""
        cursor = super().cursor(*args, **options)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        """Roll back, and close."""
        for cursor in list(self._cursors):
            with contextlib.suppress(sqlite3.Error):
                cursor.close()
        with contextlib.suppress(sqlite3.Error):
            if self.in_transaction:
                self.rollback()
        try:
            super().close()
        finally:
            self._may_begin = False


def interrupt(connection: Any, _record: object) -> None:
    """Let a statement under way fail, as nobody waits for it: its connection is being closed."""
    own = task_connection_of(connection.driver_connection)
    if own is not None:
        with contextlib.suppress(sqlite3.Error):
            own.interrupt()


def task_connection_of(driver: Any) -> TaskConnection | None:
    """Return the connection below one of aiosqlite's, ``None`` if that is closed."""
    own: TaskConnection | None = getattr(driver, "_connection", None)
    return own


async def until_it_is_over(connection: TaskConnection | None, longest_seconds: float) -> None:
    """Wait until a connection has no transaction, however often that is cancelled.

    Args:
        connection: Which one, if there is any.
        longest_seconds: For how long at most.
    """
    give_up_at = time.monotonic() + longest_seconds
    cancelled: asyncio.CancelledError | None = None
    while connection is not None and connection.holds_lock and time.monotonic() < give_up_at:
        try:
            await asyncio.sleep(POLL_SECONDS)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
