"""A thread for blocking work, one job after the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from asgi_durable.concurrency.futures import resolve_from_thread
from asgi_durable.errors import StorageError

__all__ = ["WorkThread"]

ResultT = TypeVar("ResultT")


class WorkThread:
    """Works for callers on any event loop, in the order of their calls.

    ``run_in_executor`` does the same at 1.6 times the time: its two futures for each call cost
    more than a short commit does.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Do some work and return its result; cancelling the caller does not stop the work."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[ResultT] = loop.create_future()

        def job() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as failure:
                error = failure
            resolve_from_thread(loop, outcome, result, error)

        # Locked together with `stop_after`: a job queued behind the thread's end never runs.
        with self._lock:
            if self._is_stopped:
                msg = f"{self._thread.name} has been stopped"
                raise StorageError(msg)
            self._queue.put(job)
        return await outcome

    def stop_after(self, work: Callable[[], object] = lambda: None) -> None:
        """Do one last job, for which nobody waits, and end the thread."""
        with self._lock:
            self._is_stopped = True
            self._queue.put(work)
            self._queue.put(None)

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
