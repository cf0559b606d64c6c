"""A thread for blocking work, one piece after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from asgi_durable.errors import StorageError

__all__ = ["WorkThread"]

ResultT = TypeVar("ResultT")


class WorkThread:
    """Works for callers on any event loop, in the order of their calls.

    A thread pool does it as well; its futures cost more than a short commit does.

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
        """Do some work and return what it returns; cancelling the caller does not stop it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[ResultT] = loop.create_future()

        def work_and_tell() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as failure:
                error = failure
            # The caller's event loop may be closed by now, and nobody waits then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, answer, result, error)

        # One step with `stop_after`: behind the end of the thread nobody would ever answer.
        with self._lock:
            if self._is_stopped:
                msg = f"{self._thread.name} has been stopped"
                raise StorageError(msg)
            self._queue.put(work_and_tell)
        return await answer

    def stop_after(self, work: Callable[[], object] = lambda: None) -> None:
        """Do one last piece of work for which nobody waits, and end the thread."""
        with self._lock:
            self._is_stopped = True
            self._queue.put(work)
            self._queue.put(None)

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work()


def _settle(answer: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
