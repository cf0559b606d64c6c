"""The order in which this process writes to a SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["WriteTurn"]


class WriteTurn:
    """A lock for tasks of any event loop, and for threads, in the order in which they come.

    SQLite has one writer at a time; waiting for it in its busy handler means sleeping, and has
    no order. Other processes still wait there.
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
        """Give the turn to the next one."""
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
        """Give the turn to the next one."""
        self._pass_on()

    def _take(self, wake: Callable[[], object]) -> _Waiter | None:
        """Take the turn, or a place in the queue for it."""
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
                # Its event loop may have ended, and nobody waits there then.
                with contextlib.suppress(RuntimeError):
                    waiter.wake()
                    waiter.has_turn = True
                    return
            self._is_taken = False


class _Waiter:
    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.has_turn = False


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
