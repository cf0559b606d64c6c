"""The engine's own threads, for functions that are not async."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from asgi_durable.concurrency.futures import resolve_from_thread

__all__ = ["CallInThread", "Job", "SyncFunctionPool", "ThreadExit"]

ResultT = TypeVar("ResultT")

# Calls a function in a thread, in the context of the task that waits for it.
CallInThread = Callable[[Callable[[], Any]], Any]

MAX_THREADS = 64
# Includes the threads that are started while all others wait.
MOST_THREADS = 1024
IDLE_SECONDS = 10.0


class ThreadExit(BaseException):
    """A function raised ``KeyboardInterrupt`` or ``SystemExit``, which would end an event loop."""


def _call(function: Callable[[], Any]) -> Any:
    return function()


class Job(Generic[ResultT]):
    """A function that a thread calls for a task of the running event loop.

    Args:
        function: The function.
        call: Calls it, with the context variables of the task.

    Attributes:
        result: Its result or error; cancelled if nobody waits for it any more.
        exit: The ``KeyboardInterrupt`` or ``SystemExit`` that it raised.
    """

    def __init__(self, function: Callable[[], ResultT], call: CallInThread) -> None:
        self._function = function
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self.result: asyncio.Future[ResultT] = self._loop.create_future()
        self.exit: BaseException | None = None

    def run(self) -> None:
        """Call the function, unless nobody waits for it any more."""
        if self.result.cancelled():
            return
        result: Any = None
        error: BaseException | None = None
        try:
            result = self._context.run(self._call, self._function)
        except (KeyboardInterrupt, SystemExit) as failure:
            self.exit = failure
            error = ThreadExit(type(failure).__name__)
        except StopIteration as failure:
            # As in a coroutine: a future cannot hold a StopIteration.
            error = RuntimeError("the function raised StopIteration")
            error.__cause__ = failure
        except BaseException as failure:
            error = failure
        resolve_from_thread(self._loop, self.result, result, error)


class SyncFunctionPool:
    """Calls functions in a bounded number of threads, in the order in which they arrive.

    It is neither the event loop's default executor nor a framework's thread pool: the
    application may fill those with calls that wait for a function called here.

    Deadlock guard: if every thread is blocked waiting for the engine, one more thread starts
    and takes the newest job, because blocked threads wait for jobs that were queued after
    theirs.

    Args:
        limit: Greatest number of threads, unless all of them wait for the engine.

    Attributes:
        call: Calls each function in its thread; the engine sets it, so that a function can find
            out that it runs in a thread.
    """

    def __init__(self, limit: int = MAX_THREADS) -> None:
        self.call: CallInThread = _call
        self._limit = limit
        self._begin()

    def _begin(self) -> None:
        self._process_id = os.getpid()
        self._changed = threading.Condition()
        self._jobs: deque[Job[Any]] = deque()
        self._members: set[int] = set()
        self._starting = 0
        self._idle = 0
        self._waiting = 0

    def forget_those_of_parent(self) -> None:
        """After a fork, forget the parent process's threads: the child has none of them."""
        if self._process_id != os.getpid():
            self._begin()

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Call a function in a thread, with the caller's context variables.

        Cancelling the caller does not stop a function that has begun.
        """
        job: Job[ResultT] = Job(function, self.call)
        self.submit(job)
        return await job.result

    def submit(self, job: Job[Any]) -> None:
        """Let a thread run a job; callable on any thread."""
        with self._changed:
            self._jobs.append(job)
            self._provide_thread()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the current thread as waiting for the engine, possibly for long.

        Only threads of this pool count: it does not replace any others.
        """
        if threading.get_ident() not in self._members:
            yield
            return
        with self._changed:
            self._waiting += 1
            self._provide_thread()
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1

    def _provide_thread(self) -> None:
        self._changed.notify()
        # Each idle or starting thread takes one job; a notified thread counts as idle until it
        # wakes up.
        if len(self._jobs) <= self._idle + self._starting:
            return
        threads = len(self._members) + self._starting
        if threads < self._limit or self._waiting == threads < MOST_THREADS:
            self._starting += 1
            # A daemon, so that a function that never returns does not keep the process alive.
            threading.Thread(target=self._serve, name="asgi-durable-body", daemon=True).start()

    def _serve(self) -> None:
        with self._changed:
            self._starting -= 1
            self._members.add(threading.get_ident())
        while (job := self._next()) is not None:
            job.run()
            # Release the job's context, and all it refers to, before the wait for the next one.
            del job

    def _next(self) -> Job[Any] | None:
        """Return the next job, ``None`` if the thread is not needed any more."""
        with self._changed:
            while not self._jobs and len(self._members) <= self._limit:
                self._idle += 1
                was_notified = self._changed.wait(IDLE_SECONDS)
                self._idle -= 1
                if not was_notified and not self._jobs:
                    break
            # All members but this thread, which is not waiting for the engine.
            others_wait = 0 < self._waiting == len(self._members) - 1
            if self._jobs and others_wait:
                return self._jobs.pop()
            if self._jobs and len(self._members) <= self._limit:
                return self._jobs.popleft()
            self._members.discard(threading.get_ident())
            return None
