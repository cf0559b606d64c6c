"""Passing the heartbeat's events on to an engine, without keeping the engine alive."""

from __future__ import annotations

import weakref
from contextlib import AsyncExitStack
from functools import partial

from asgi_durable.concurrency.home_loop import HomeLoop
from asgi_durable.concurrency.loop_guard import LoopGuards
from asgi_durable.engine.composition import EngineParts
from asgi_durable.storage.protocol import Beat, Runnable, Storage
from asgi_durable.storage.transaction_port import ApplicationDatabase
from asgi_durable.telemetry.observer import TelemetrySource

__all__ = ["HeartbeatListener", "end_when_dropped"]


class HeartbeatListener:
    """Passes the heartbeat's events on to the parts of an engine.

    The heartbeat's thread lives until it is ended, so the listener refers to the parts weakly.

    Args:
        running: The parts.
    """

    def __init__(self, running: EngineParts) -> None:
        self._running = weakref.ref(running)
        executor = running.services.executor
        executor.is_used = self.is_used
        executor.runnable = self.runnable
        executor.on_beat = self.on_beat
        executor.on_message = self.on_message
        executor.on_renamed = self.on_renamed

    def is_used(self) -> bool:
        """Tell whether anything still refers to the parts, to stop the engine or to run on it."""
        return self._running() is not None

    def runnable(self) -> Runnable:
        """Return the work that this process can take over; see ``Takeover.runnable``."""
        running = self._running()
        return Runnable(names=frozenset()) if running is None else running.takeover.runnable()

    def on_beat(self, beat: Beat) -> None:
        """React to a heartbeat: take workflows over, and do the periodic checks."""
        running = self._running()
        if running is not None:
            running.takeover.on_beat(beat)
            running.cancellation.query_if_due()
            running.unknown.look_if_due()
            running.sweeper.sweep_if_due()

    def on_message(self, message: str) -> None:
        """React to a message of another executor."""
        running = self._running()
        if running is not None:
            running.outcomes.on_message(message)
            running.cancellation.on_message(message)

    def on_renamed(self) -> None:
        """Drop the old executor's runs: it was declared dead, and this process has a new one."""
        running = self._running()
        if running is not None:
            running.services.telemetry.observer.lease_lost()
            running.active.drop_others(running.services.executor.id)


def end_when_dropped(running: EngineParts, home: HomeLoop) -> None:
    """Let the heartbeat close an engine's resources once nothing refers to the engine."""
    services = running.services
    # Invariant: none of these refers to the engine, which would never be dropped then.
    services.executor.on_dropped = partial(
        _close, services.storage, services.application, services.telemetry, services.guards, home
    )


async def _close(
    storage: Storage,
    application: ApplicationDatabase | None,
    telemetry: TelemetrySource,
    guards: LoopGuards,
    home: HomeLoop,
) -> None:
    # A stack closes everything, even if closing one of them fails.
    async with AsyncExitStack() as closing:
        closing.callback(home.end_soon)
        closing.push_async_callback(telemetry.close)
        closing.push_async_callback(storage.close)
        if application is not None:
            closing.push_async_callback(application.close)
        closing.callback(guards.dismiss_all)
