"""Locks around a SQLite file: between processes, and between the tasks and threads of one."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

__all__ = ["ProcessLock", "WriteTurn"]


class ProcessLock:
    """An exclusive lock on a small file, which the kernel releases when the process dies.

    It is taken through SQLite, so it works wherever SQLite works. Several locks of one process do
    not disturb each other, as plain POSIX locks would.

    Args:
        path: The small file.
        database: The database; the small file gets the same permissions.
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
        """Create the file and take the lock; return False if another process holds it.

        Raises:
            sqlite3.Error: The file cannot be written.
        """
        connection = _lock(self.path)
        self._connection = connection
        if connection is not None:
            # As SQLite does for its own files, so that other users can query the lock.
            with contextlib.suppress(OSError):
                self.path.chmod(self._database.stat().st_mode & 0o666)
        return connection is not None

    def is_held(self) -> bool:
        """Return True if any process holds the lock; False if the file is missing.

        It is also True if the file cannot be read, for example because it belongs to another user.
        """
        if not self.path.exists():
            return False
        try:
            with contextlib.closing(_reading(self.path)) as connection:
                # This takes a shared lock, which fails while the exclusive one is held.
                connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        except sqlite3.Error:
            return True
        return False

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def remove(self) -> None:
        """Delete the file, after :meth:`release`; it stays if it cannot be deleted.

        It stays in a sticky folder if it belongs to another user, and on Windows while another
        process reads it.
        """
        with contextlib.suppress(OSError):
            self.path.unlink()


class WriteTurn:
    """The lock under which this process writes to a file: for tasks and threads, first come first.

    SQLite allows one writer at a time. Its own busy handler sleeps between attempts and has no
    order; only other processes are left to wait there. Tasks of any event loop may wait here.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_taken = False
        self._waiters: deque[_Waiter] = deque()

    async def __aenter__(self) -> None:
        """Wait for the turn in a task."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        waiter = self._take(lambda: loop.call_soon_threadsafe(_wake, future))
        if waiter is None:
            return
        try:
            await future
        except BaseException:
            self._withdraw(waiter)
            raise

    async def __aexit__(self, *_: object) -> None:
        """Pass the turn to the next waiter."""
        self._pass_on()

    def __enter__(self) -> None:
        """Wait for the turn in a thread."""
        woken = threading.Event()
        waiter = self._take(woken.set)
        if waiter is None:
            return
        try:
            woken.wait()
        except BaseException:  # a signal
            self._withdraw(waiter)
            raise

    def __exit__(self, *_: object) -> None:
        """Pass the turn to the next waiter."""
        self._pass_on()

    def _take(self, wake: Callable[[], object]) -> _Waiter | None:
        """Take the turn and return ``None``, or queue for it and return the waiter."""
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return None
            waiter = _Waiter(wake)
            self._waiters.append(waiter)
            return waiter

    def _withdraw(self, waiter: _Waiter) -> None:
        with self._guard:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        if waiter.has_turn:
            self._pass_on()

    def _pass_on(self) -> None:
        with self._guard:
            while self._waiters:
                waiter = self._waiters.popleft()
                # RuntimeError: its event loop is closed, so nobody waits there.
                with contextlib.suppress(RuntimeError):
                    waiter.wake()
                    waiter.has_turn = True
                    return
            self._is_taken = False


def _lock(path: Path) -> sqlite3.Connection | None:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        # Nothing is ever written, so no journal file is needed for a rollback.
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


class _Waiter:
    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.has_turn = False


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
