"""The event loop on which calls from threads reach the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from asgi_durable.concurrency.loop_thread import LoopThread
from asgi_durable.errors import DurableUsageError

__all__ = ["HomeLoop", "require_asyncio"]


class HomeLoop:
    """The application's event loop while it runs, else an event loop in a thread of its own.

    Without a lifespan there is no telling which event loop is the application's: a server may
    call it on one loop after another, and a workflow that a thread has started outlives the
    request that started it.
    """

    def __init__(self) -> None:
        self._application: asyncio.AbstractEventLoop | None = None
        self._own: LoopThread | None = None
        self._lock = threading.Lock()

    def settle_here(self) -> None:
        """Take the running event loop as the application's."""
        self._application = asyncio.get_running_loop()

    def get(self) -> asyncio.AbstractEventLoop:
        """Return the event loop for a call of the current thread, which runs none itself."""
        loop = self._application
        return loop if loop is not None and loop.is_running() else self.own().loop

    def own(self) -> LoopThread:
        """Return the thread with our own event loop; it starts at the first use."""
        with self._lock:
            if self._own is None:
                self._own = LoopThread("asgi-durable-calls")
                self._own.start()
            return self._own

    async def on_own(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do some work on our own event loop, if there is one and it is not the running one."""
        own = self._own
        if own is not None and own.loop is not asyncio.get_running_loop():
            await own.run(work)

    async def end_own(self) -> None:
        """End our own event loop, if there is one and it is not the running one."""
        own = self._own
        if own is not None and own.loop is not asyncio.get_running_loop():
            self._own = None
            await own.stop()

    def end_soon(self) -> None:
        """End our own event loop without waiting for it; callable on any thread."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.stop_soon()

    def end(self) -> None:
        """End our own event loop and wait for it, from a thread without an event loop."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.stop_soon()
            own.join()


def require_asyncio() -> asyncio.AbstractEventLoop:
    """Check that async code runs on asyncio, whose futures the engine and its drivers await.

    Returns:
        The running event loop.

    Raises:
        DurableUsageError: The code runs on another kind of event loop, for example trio's.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        msg = (
            "durable functions and requests with a key need asyncio, and this code runs on another "
            "event loop, trio's perhaps: run it with asyncio ('hypercorn --worker-class asyncio')"
        )
        raise DurableUsageError(msg) from None
