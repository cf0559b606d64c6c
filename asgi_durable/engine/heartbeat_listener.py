"""What the heartbeat tells an engine, without keeping it alive, and what ends with the engine."""

from __future__ import annotations

import weakref
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from asgi_durable.concurrency.home_loop import HomeLoop
from asgi_durable.concurrency.loop_guard import LoopGuards
from asgi_durable.engine.requests.retention_sweeper import Sweeper
from asgi_durable.storage.protocol import Beat, Runnable, Storage
from asgi_durable.storage.transaction_port import ApplicationDatabase
from asgi_durable.telemetry.observer import TelemetrySource

if TYPE_CHECKING:
    from asgi_durable.engine.composition import EngineParts

__all__ = ["HeartbeatListener", "end_when_dropped"]


class HeartbeatListener:
    """Passes on what the heartbeat's thread tells; that thread is there until it is ended.

    Args:
        running: Whom it is passed on to, as long as somebody else has it.
        sweeper: Forgets what has expired.
    """

    def __init__(self, running: EngineParts, sweeper: Sweeper) -> None:
        self._running = weakref.ref(running)
        self._sweeper = sweeper

    def listen(self, running: EngineParts) -> None:
        """Be told from now on."""
        executor = running.services.executor
        executor.is_used = self.is_used
        executor.runnable = self.runnable
        executor.on_beat = self.on_beat
        executor.on_message = self.on_message
        executor.on_renamed = self.on_renamed

    def is_used(self) -> bool:
        """Tell whether anything is left that could stop the engine, or that runs on it."""
        return self._running() is not None

    def runnable(self) -> Runnable:
        """See ``Takeover.runnable``."""
        running = self._running()
        return Runnable(names=frozenset()) if running is None else running.takeover.runnable()

    def on_beat(self, beat: Beat) -> None:
        """Look at what a beat has brought."""
        running = self._running()
        if running is not None:
            running.takeover.on_beat(beat)
            running.cancellation.look_if_due()
            running.unknown.look_if_due()
            self._sweeper.sweep_if_due()

    def on_message(self, message: str) -> None:
        """Look at what another executor has sent."""
        running = self._running()
        if running is not None:
            running.outcomes.on_message(message)
            running.cancellation.on_message(message)

    def on_renamed(self) -> None:
        """Take note that the process was declared dead, and goes on as another executor."""
        running = self._running()
        if running is not None:
            running.services.telemetry.observer.lease_lost()
            running.active.drop_others(running.services.executor.id)


def end_when_dropped(running: EngineParts, home: HomeLoop) -> None:
    """Let the heartbeat end all that works for an engine, once nobody has that any more."""
    services = running.services
    # Invariant: none of them refers to the engine, which would never be dropped then.
    services.executor.on_dropped = partial(
        _end, services.storage, services.application, services.telemetry, services.guards, home
    )


async def _end(
    storage: Storage,
    application: ApplicationDatabase | None,
    telemetry: TelemetrySource,
    guards: LoopGuards,
    home: HomeLoop,
) -> None:
    # A stack: all of it is closed, whatever fails on the way.
    async with AsyncExitStack() as closing:
        closing.callback(home.end_soon)
        closing.push_async_callback(telemetry.close)
        closing.push_async_callback(storage.close)
        if application is not None:
            closing.push_async_callback(application.close)
        closing.callback(guards.dismiss_all)
