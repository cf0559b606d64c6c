"""Telling a workflow that was cancelled from an event loop that is being shut down."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars

from asgi_durable.concurrency.per_loop import PerLoop

__all__ = ["LoopGuards"]


class LoopGuards:
    """Keeps a task on every event loop that only waits to be cancelled.

    ``asyncio.run`` ends by cancelling all tasks before any of them gets a turn. So when a
    run's code sees a cancellation and the guard is being cancelled as well, the loop ends,
    and what that code does about it is no outcome.
    """

    def __init__(self) -> None:
        self._guards = PerLoop(
            lambda: asyncio.get_running_loop().create_task(
                # Kept for as long as the loop runs, and so is what its context holds.
                _wait(),
                context=contextvars.Context(),
            )
        )

    def watch(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """Return the guard of *loop*, which must be running here."""
        return self._guards.get(loop)

    def dismiss_all(self) -> None:
        """End the guards of all event loops; callable on any thread."""
        for loop, guard in self._guards.items():
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(guard.cancel)

    async def dismiss(self) -> None:
        """End the running event loop's guard; nothing runs there any more."""
        guard = self._guards.get(asyncio.get_running_loop())
        guard.cancel()
        await asyncio.wait([guard])


async def _wait() -> None:
    await asyncio.get_running_loop().create_future()
