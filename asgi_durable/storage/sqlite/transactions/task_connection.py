"""Connections of the driver for transactions in tasks, which may be cancelled at any await."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

__all__ = ["TaskConnection", "interrupt", "task_connection_of", "wait_until_unlocked"]

POLL_SECONDS = 0.001


class TaskConnection(sqlite3.Connection):
    """A connection whose transaction is over when it is closed.

    A plain connection that is closed while a statement still has rows to read stays open inside
    SQLite, with its transaction and the file's write lock. If a task is cancelled, such a
    statement exists until the garbage collector finds it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()
        self._is_ending = False
        self._may_begin = False

    @property
    def holds_lock(self) -> bool:
        """True while a transaction begins, is open, or ends; may be read on any thread."""
        try:
            # Invariant: read in this order. SQLite reports the end of a transaction before it
            # releases the lock.
            return self._may_begin or self.in_transaction or self._is_ending
        except sqlite3.ProgrammingError:
            # The connection is closed.
            return False

    def begins(self) -> None:
        """Record that the connection's thread will begin a transaction.

        A task that is cancelled before :meth:`has_begun` cannot know whether the transaction has
        begun, so :attr:`holds_lock` is True until the thread has ended it.
        """
        self._may_begin = True

    def has_begun(self) -> None:
        """Record that the transaction has begun."""
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
        """Close all statements, roll back, and close."""
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
    """Interrupt the running statement of a connection that is being closed."""
    own = task_connection_of(connection.driver_connection)
    if own is not None:
        with contextlib.suppress(sqlite3.Error):
            own.interrupt()


def task_connection_of(driver: Any) -> TaskConnection | None:
    """Return the connection below a connection of aiosqlite's, ``None`` if it is closed."""
    own: TaskConnection | None = getattr(driver, "_connection", None)
    return own


async def wait_until_unlocked(connection: TaskConnection | None, longest_seconds: float) -> None:
    """Wait until a connection has no transaction; a cancellation takes effect after that.

    Args:
        connection: The connection, if there is one.
        longest_seconds: The longest time to wait.
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
