"""Telling a cancelled workflow from an event loop that is shutting down."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars

from asgi_durable.concurrency.per_loop import PerLoop

__all__ = ["LoopGuards"]


class LoopGuards:
    """One task on every event loop that only waits to be cancelled.

    ``asyncio.run`` ends by cancelling all tasks before any of them gets a turn. So if a run's
    code sees a cancellation while the guard is being cancelled as well, the event loop is
    shutting down, and whatever the code does about the cancellation is not its outcome.
    """

    def __init__(self) -> None:
        self._guards = PerLoop(
            lambda: asyncio.get_running_loop().create_task(
                # An empty context: the guard lives as long as its loop, and so would everything
                # that the caller's context variables refer to.
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
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(guard.cancel)

    async def dismiss(self) -> None:
        """End the running event loop's guard, once no run is left on that loop."""
        guard = self._guards.get(asyncio.get_running_loop())
        guard.cancel()
        await asyncio.wait([guard])


async def _wait() -> None:
    await asyncio.get_running_loop().create_future()
