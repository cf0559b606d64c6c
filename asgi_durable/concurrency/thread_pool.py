"""Threads of the engine's own, for functions that are not async."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from asgi_durable.engine.runs.frame import current_frame

__all__ = ["Job", "SyncFunctionPool", "ThreadExit"]

ResultT = TypeVar("ResultT")

MAX_THREADS = 64
# With those that are started as all others wait.
MOST_THREADS = 1024
IDLE_SECONDS = 10.0


class ThreadExit(BaseException):
    """A function raised ``KeyboardInterrupt`` or ``SystemExit``, which would end an event loop."""


class Job(Generic[ResultT]):
    """A function that a thread calls for a task of the running event loop.

    Attributes:
        answer: What it returns or raises; cancelled where nobody waits for it any more.
        exit: The ``KeyboardInterrupt`` or ``SystemExit`` that it raised.
    """

    def __init__(self, function: Callable[[], ResultT]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self.answer: asyncio.Future[ResultT] = self._loop.create_future()
        self.exit: BaseException | None = None

    def do(self) -> None:
        """Call the function, unless nobody waits for it any more."""
        if self.answer.cancelled():
            return
        result: Any = None
        error: BaseException | None = None
        try:
            result = self._context.run(self._call)
        except (KeyboardInterrupt, SystemExit) as failure:
            self.exit = failure
            error = ThreadExit(type(failure).__name__)
        except StopIteration as failure:
            # As in a coroutine: a future cannot hold one.
            error = RuntimeError("the function raised StopIteration")
            error.__cause__ = failure
        except BaseException as failure:
            error = failure
        # The event loop may be closed by now, and nobody waits then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_settle, self.answer, result, error)

    def _call(self) -> ResultT:
        frame = current_frame.get()
        if frame is not None:
            current_frame.set(replace(frame, in_thread=True))
        return self._function()


class SyncFunctionPool:
    """Calls functions in threads, a bounded number at once, in the order in which they came.

    Neither the event loop's default executor nor a framework's pool: the application may fill
    those up with calls that wait for what is done here. A thread that waits for the engine helps
    nobody. Where all of them do, one more is started, and takes what came last: what the others
    wait for came after them.

    Args:
        limit: How many threads there are, unless all of them wait.
    """

    def __init__(self, limit: int = MAX_THREADS) -> None:
        self._limit = limit
        self._begin()

    def _begin(self) -> None:
        self._process_id = os.getpid()
        self._changed = threading.Condition()
        self._pieces: deque[Job[Any]] = deque()
        self._members: set[int] = set()
        self._starting = 0
        self._idle = 0
        self._waiting = 0

    def forget_those_of_parent(self) -> None:
        """Count on no threads that a parent process had when this one was forked."""
        if self._process_id != os.getpid():
            self._begin()

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Call a function in a thread, with the caller's context variables.

        Cancelling the caller does not stop a function that has begun.
        """
        piece = Job(function)
        self.give(piece)
        return await piece.answer

    def give(self, piece: Job[Any]) -> None:
        """Let a thread do a piece; may be called from any thread."""
        with self._changed:
            self._pieces.append(piece)
            self._see_to_threads()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Say that the current thread waits for the engine, and may do so for long.

        Only one of these threads matters: another one is none of theirs to replace.
        """
        if threading.get_ident() not in self._members:
            yield
            return
        with self._changed:
            self._waiting += 1
            self._see_to_threads()
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1

    def _see_to_threads(self) -> None:
        self._changed.notify()
        # Each of these takes one, also those that are notified and have not woken up yet.
        if len(self._pieces) <= self._idle + self._starting:
            return
        threads = len(self._members) + self._starting
        if threads < self._limit or self._waiting == threads < MOST_THREADS:
            self._starting += 1
            # A daemon: a function that never ends must not keep the process from ending.
            threading.Thread(target=self._serve, name="asgi-durable-body", daemon=True).start()

    def _serve(self) -> None:
        with self._changed:
            self._starting -= 1
            self._members.add(threading.get_ident())
        while (piece := self._next()) is not None:
            piece.do()
            # Its context, and what that holds, may be gone before the next one comes.
            del piece

    def _next(self) -> Job[Any] | None:
        """Return what is to be done next, ``None`` if the thread is not needed any more."""
        with self._changed:
            while not self._pieces and len(self._members) <= self._limit:
                self._idle += 1
                was_notified = self._changed.wait(IDLE_SECONDS)
                self._idle -= 1
                if not was_notified and not self._pieces:
                    break
            # Counted without this one, which waits for nothing.
            others_wait = 0 < self._waiting == len(self._members) - 1
            if self._pieces and others_wait:
                return self._pieces.pop()
            if self._pieces and len(self._members) <= self._limit:
                return self._pieces.popleft()
            self._members.discard(threading.get_ident())
            return None


def _settle(answer: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
