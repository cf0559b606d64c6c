"""A thread with an event loop of its own, for I/O that no other event loop may delay."""

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

    A coroutine that has begun runs to its end, even if its caller is cancelled or the caller's
    event loop ends: a write must not stop halfway.

    Args:
        name: The thread's name.

    Attributes:
        loop: The event loop.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        # The event loop itself holds only weak references to its tasks.
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def run(self, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Run a coroutine on the thread and return its result.

        Args:
            work: Makes the coroutine; called on the thread.

        Raises:
            RuntimeError: The thread has been stopped.
        """
        caller = asyncio.get_running_loop()
        result: asyncio.Future[ResultT] = caller.create_future()

        def on_done(task: asyncio.Task[ResultT]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                # Retrieve the error even if the caller is cancelled; asyncio logs it otherwise.
                task.exception()
            # The caller's event loop may be closed by now; then nobody waits.
            with contextlib.suppress(RuntimeError):
                caller.call_soon_threadsafe(_copy_result, task, result)

        def begin() -> None:
            task = self.loop.create_task(work())
            self._tasks.add(task)
            task.add_done_callback(on_done)

        self.loop.call_soon_threadsafe(begin)
        return await result

    async def stop(self) -> None:
        """Let the work that has begun finish, then end the thread."""
        if self.loop.is_closed():
            return
        await self.run(self._finish_others)
        self.stop_soon()
        # The thread is idle, so this blocks no longer than closing an idle event loop takes.
        self.join()

    def stop_soon(self) -> None:
        """End the thread without waiting; the work under way is cancelled."""
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


def _copy_result(task: asyncio.Task[ResultT], result: asyncio.Future[ResultT]) -> None:
    if result.done():
        return
    if task.cancelled():
        result.set_exception(RuntimeError("the thread was stopped before the work had a result"))
    elif (error := task.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(task.result())
