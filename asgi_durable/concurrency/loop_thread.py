"""A thread with an event loop of its own, for I/O that no other loop may hold up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

ResultT = TypeVar("ResultT")


class LoopThread:
    """Runs coroutines for callers on any event loop.

    Cancelling a caller does not cancel its work, and neither does the end of its event loop:
    a write that has begun comes to its end.

    Args:
        name: The thread's name.

    Attributes:
        loop: The event loop.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        # The event loop itself keeps weak references only.
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def run(self, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Run a coroutine on the thread and return what it returns.

        Args:
            work: Makes the coroutine; called on the thread.

        Raises:
            RuntimeError: The thread has been stopped.
        """
        caller = asyncio.get_running_loop()
        answer: asyncio.Future[ResultT] = caller.create_future()

        def tell(task: asyncio.Task[ResultT]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                # Retrieved, also where the caller is gone: asyncio complains else.
                task.exception()
            # The caller's event loop may be closed by now, and nobody waits then.
            with contextlib.suppress(RuntimeError):
                caller.call_soon_threadsafe(_settle, answer, task)

        def begin() -> None:
            task = self.loop.create_task(work())
            self._tasks.add(task)
            task.add_done_callback(tell)

        self.loop.call_soon_threadsafe(begin)
        return await answer

    async def stop(self) -> None:
        """Let the work that has begun come to its end, then end the thread."""
        if self.loop.is_closed():
            return
        await self.run(self._finish_others)
        self.stop_soon()
        # Nothing is left to do there: this takes no longer than closing an idle event loop.
        self.join()

    def stop_soon(self) -> None:
        """End the thread without waiting; what it is doing is cancelled."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)

    def join(self) -> None:
        """Wait, in another thread, until this one has ended."""
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.get_loop().run_forever()

    async def _finish_others(self) -> None:
        current = asyncio.current_task()
        while others := [task for task in self._tasks if task is not current]:
            await asyncio.wait(others)


def _settle(answer: asyncio.Future[ResultT], task: asyncio.Task[ResultT]) -> None:
    if answer.done():
        return
    if task.cancelled():
        answer.set_exception(RuntimeError("the thread was stopped before it had an answer"))
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())
