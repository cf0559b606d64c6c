"""A thread that calls the engine, from code that is not async."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from asgi_durable.concurrency.thread_pool import Job, SyncFunctionPool
from asgi_durable.engine.runs.frame import current_frame

__all__ = ["LoopEndedError", "ThreadBridge"]

ResultT = TypeVar("ResultT")

# How often a thread that waits looks whether its event loop is still there.
LOOP_CHECK_SECONDS = 1.0
# A commit is over by then: whoever waits longer may wait for another thread's work.
SHORT_WAIT_SECONDS = 0.1


class LoopEndedError(Exception):
    """The event loop that a thread waited for has ended."""


class ThreadBridge(Generic[ResultT]):
    """One call of the engine's, by a thread that waits for it.

    While it waits it does what the call has for a thread to do: a function that is not async
    runs in the thread that it was called in.

    Args:
        loop: Where the call is made.
        threads: They do what comes for a thread that does not wait any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: SyncFunctionPool) -> None:
        self._loop = loop
        self._threads = threads
        self._pieces: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_over = False
        self._task: asyncio.Task[ResultT] | None = None

    def call(self, begin: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Call a coroutine function on the event loop; return what it returns.

        Whatever becomes of the thread, the call goes on.

        Args:
            begin: Called on the event loop with the thread's context variables.

        Raises:
            LoopEndedError: The event loop ended before the call did.
        """
        try:
            self._loop.call_soon_threadsafe(self._begin, begin, contextvars.copy_context())
        except RuntimeError:
            raise LoopEndedError from None
        try:
            while (piece := self._next()) is not None:
                piece.do()
                if piece.exit is not None:
                    raise piece.exit
        finally:
            self._leave()
        if self._task is None or not self._task.done() or self._task.cancelled():
            raise LoopEndedError
        return self._task.result()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call a function in the thread; for the event loop, as ``SyncFunctionPool.run``."""
        piece = Job(function)
        self._give(piece)
        return await piece.answer

    def _give(self, piece: Job[Any]) -> None:
        with self._lock:
            if not self._is_over:
                self._pieces.put(piece)
                return
        self._threads.give(piece)

    def _begin(
        self,
        begin: Callable[[], Coroutine[Any, Any, ResultT]],
        context: contextvars.Context,
    ) -> None:
        self._task = self._loop.create_task(_on_loop(begin), context=context)
        self._task.add_done_callback(lambda _: self._pieces.put(None))

    def _next(self) -> Job[Any] | None:
        with contextlib.suppress(Empty):
            return self._pieces.get(timeout=SHORT_WAIT_SECONDS)
        with self._threads.waiting():
            while not self._loop.is_closed():
                with contextlib.suppress(Empty):
                    return self._pieces.get(timeout=LOOP_CHECK_SECONDS)
        return None

    def _leave(self) -> None:
        with self._lock:
            self._is_over = True
        while not self._pieces.empty():
            piece = self._pieces.get()
            if piece is not None:
                self._threads.give(piece)


async def _on_loop(begin: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
    frame = current_frame.get()
    if frame is not None:
        # What is called here is awaited here.
        current_frame.set(replace(frame, in_thread=False))
    return await begin()
