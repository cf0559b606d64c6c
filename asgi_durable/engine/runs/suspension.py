"""Which runs do nothing but sleep, and who wants to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asgi_durable.concurrency.once import Once

if TYPE_CHECKING:
    from asgi_durable.engine.runs.run import Run

__all__ = ["Sleepers", "Sleeping", "asleep_until_us", "seconds_until", "sleeping_of"]


# A shorter sleep is part of the span that it is in.
SHORTEST_SUSPENSION_SECONDS = 1.0
# How long a run must have been asleep: what a branch has just done may wake others of it, whose
# turns come later.
SETTLING_SECONDS = 0.05


class Sleepers:
    """Tells when a run falls asleep.

    Attributes:
        on_asleep: Called on the run's event loop.
    """

    def __init__(self) -> None:
        self.on_asleep: Callable[[Run], None] = lambda _: None


class Sleeping:
    """The sleeps of one run, and who waits until it is asleep.

    A run is asleep while all that it has called and that is not over sleeps: its own sleeps,
    and workflows that it waits for.
    """

    __slots__ = ("_is_looked_at_soon", "_suspends_soon", "_waiters", "sleeps")

    def __init__(self) -> None:
        # By their places in the log: when they end, and what is set to wake them up.
        self.sleeps: dict[int, tuple[int, asyncio.Future[None]]] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._is_looked_at_soon = False
        self._suspends_soon = False

    def look_soon(self, run: Run) -> None:
        """Look whether the run is asleep, once its code has had its turn."""
        if (self.sleeps or run.awaited) and not self._is_looked_at_soon:
            self._is_looked_at_soon = True
            run.loop.call_soon(self._look, run)

    def wake(self) -> None:
        """End all sleeps: the run was stopped, and its code is to learn of it."""
        for _, woken in self.sleeps.values():
            _set(woken)

    def wake_until(self, time_us: int) -> None:
        """Let the sleeps look at the clock that end by a time."""
        for ends_at_us, woken in self.sleeps.values():
            if ends_at_us <= time_us:
                _set(woken)

    def wake_one(self, number: int) -> None:
        """End one sleep, or what the clock was not looked at for."""
        _, woken = self.sleeps[number]
        _set(woken)

    async def change(self, *signals: Once[Any]) -> None:
        """Wait until the run falls asleep, or one of some signals is set."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for signal in signals:
            if signal.is_set():
                return
            signal.add_waiter(waiter)
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _suspend(self, run: Run) -> None:
        self._suspends_soon = False
        until_us = asleep_until_us(run)
        if until_us is not None and not run.closed and run.stopped is None:
            run.observed.suspended(until_us)

    def _look(self, run: Run) -> None:
        self._is_looked_at_soon = False
        until_us = asleep_until_us(run)
        if until_us is None:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _set(waiter)
        if seconds_until(until_us) >= SHORTEST_SUSPENSION_SECONDS and not self._suspends_soon:
            self._suspends_soon = True
            run.loop.call_later(SETTLING_SECONDS, self._suspend, run)
        run.services.sleepers.on_asleep(run)
        if run.caller is not None:
            sleeping_of(run.caller).look_soon(run.caller)


def sleeping_of(run: Run) -> Sleeping:
    """Return the sleeps of a run."""
    if run.sleeping is None:
        run.sleeping = Sleeping()
    return run.sleeping


def asleep_until_us(run: Run) -> int | None:
    """Return when the first of a run's sleeps ends, ``None`` if the run is not asleep.

    Returns:
        Microseconds since 1970, UTC.
    """
    ends = [end for end, _ in run.sleeping.sleeps.values()] if run.sleeping is not None else []
    for child in run.awaited:
        end = asleep_until_us(child)
        if end is not None:
            ends.append(end)
    return min(ends) if ends and run.settled_calls + len(ends) == run.calls else None


def seconds_until(time_us: int) -> float:
    """Return how many seconds are left until a time, 0 or less if it is over."""
    return time_us / 1_000_000 - time.time()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
