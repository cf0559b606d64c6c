"""A call of the engine from a thread in which no event loop runs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from asgi_durable.concurrency.thread_pool import Job, SyncFunctionPool

__all__ = ["LoopEndedError", "ThreadBridge"]

ResultT = TypeVar("ResultT")

# How often a waiting thread checks whether its event loop still exists.
LOOP_CHECK_SECONDS = 1.0
# A commit takes less; a thread that waits longer may be waiting for another thread's work.
SHORT_WAIT_SECONDS = 0.1


class LoopEndedError(Exception):
    """The event loop that a thread waited for has ended."""


class ThreadBridge(Generic[ResultT]):
    """One call of the engine, by a thread that waits for its result.

    While the thread waits it runs the sync functions of the call, so a ``def`` function runs in
    the thread that it was called in.

    Args:
        loop: The event loop that the call runs on.
        threads: Run the call's sync functions once the thread has stopped waiting.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: SyncFunctionPool) -> None:
        self._loop = loop
        self._threads = threads
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_over = False
        self._task: asyncio.Task[ResultT] | None = None

    def call(self, begin: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Call an ``async def`` function on the event loop and return its result.

        The call continues even if the thread stops waiting for it.

        Args:
            begin: The function; its body runs on the event loop with the thread's context
                variables.

        Raises:
            LoopEndedError: The event loop ended before the call did.
        """
        try:
            self._loop.call_soon_threadsafe(self._begin, begin, contextvars.copy_context())
        except RuntimeError:
            raise LoopEndedError from None
        try:
            while (job := self._next()) is not None:
                job.run()
                if job.exit is not None:
                    raise job.exit
        finally:
            self._leave()
        if self._task is None or not self._task.done() or self._task.cancelled():
            raise LoopEndedError
        return self._task.result()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call a function in the waiting thread; see ``SyncFunctionPool.run``."""
        job: Job[Any] = Job(function, self._threads.call)
        self._submit(job)
        return await job.result

    def _submit(self, job: Job[Any]) -> None:
        with self._lock:
            if not self._is_over:
                self._jobs.put(job)
                return
        self._threads.submit(job)

    def _begin(
        self,
        begin: Callable[[], Coroutine[Any, Any, ResultT]],
        context: contextvars.Context,
    ) -> None:
        self._task = self._loop.create_task(begin(), context=context)
        self._task.add_done_callback(lambda _: self._jobs.put(None))

    def _next(self) -> Job[Any] | None:
        with contextlib.suppress(Empty):
            return self._jobs.get(timeout=SHORT_WAIT_SECONDS)
        with self._threads.waiting():
            while not self._loop.is_closed():
                with contextlib.suppress(Empty):
                    return self._jobs.get(timeout=LOOP_CHECK_SECONDS)
        return None

    def _leave(self) -> None:
        with self._lock:
            self._is_over = True
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                self._threads.submit(job)
