"""Runs that do nothing but sleep, and the tasks that wait for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from asgi_durable.concurrency.once import Once
from asgi_durable.engine.replay.run_log import RunLog
from asgi_durable.engine.stopping import Interrupted
from asgi_durable.telemetry.observer import ObservedRun

__all__ = ["Sleepers", "Sleeping", "SuspendableRun", "asleep_until_us", "seconds_until"]


# A shorter sleep belongs to the span that it is in.
SHORTEST_SUSPENSION_SECONDS = 1.0
# How long a run must be asleep before its span ends: one of its branches may just have woken
# others, whose turns come later.
SETTLING_SECONDS = 0.05


class SuspendableRun(Protocol):
    """The parts of a run that decide whether it is asleep."""

    loop: asyncio.AbstractEventLoop
    log: RunLog
    observed: ObservedRun
    closed: bool

    @property
    def stopped(self) -> Interrupted | None:
        """Why the run must stop."""

    @property
    def sleeping(self) -> Sleeping | None:
        """The run's sleeps, once it has any."""

    @property
    def awaited(self) -> Sequence[SuspendableRun]:
        """The runs that this run waits for."""

    @property
    def caller(self) -> SuspendableRun | None:
        """The run that waits for this one."""

    def sleeps(self) -> Sleeping:
        """Return the run's sleeps."""


class Sleepers:
    """Reports that a run falls asleep.

    Attributes:
        on_asleep: Called with the run, on its event loop.
    """

    def __init__(self) -> None:
        self.on_asleep: Callable[[Any], None] = lambda _: None


class Sleeping:
    """The sleeps of one run, and the tasks that wait until the run is asleep.

    A run is asleep while every call of it that is not over sleeps: its own sleeps, and workflows
    that it waits for.
    """

    __slots__ = ("_is_looked_at_soon", "_run", "_sleepers", "_sleeps", "_suspends_soon", "_waiters")

    def __init__(self, run: SuspendableRun, sleepers: Sleepers) -> None:
        self._run = run
        self._sleepers = sleepers
        # By their numbers in the log: when they end, and the future that wakes them.
        self._sleeps: dict[int, tuple[int, asyncio.Future[None]]] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._is_looked_at_soon = False
        self._suspends_soon = False

    def ends_us(self) -> list[int]:
        """Return when the sleeps end."""
        return [ends_at_us for ends_at_us, _ in self._sleeps.values()]

    async def nap(self, number: int, ends_at_us: int, seconds: float) -> None:
        """Wait for some seconds within a sleep, or until the sleep must look at the clock.

        Args:
            number: The number of the sleep in the log.
            ends_at_us: When the sleep ends; microseconds since 1970, UTC.
            seconds: How long to wait at most.
        """
        loop = self._run.loop
        woken: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _set, woken)
        self._sleeps[number] = (ends_at_us, woken)
        self.call_finished()
        try:
            await woken
        finally:
            timer.cancel()
            del self._sleeps[number]

    def call_finished(self) -> None:
        """Look whether the run is asleep, once its code has had its turn."""
        if (self._sleeps or self._run.awaited) and not self._is_looked_at_soon:
            self._is_looked_at_soon = True
            self._run.loop.call_soon(self._look)

    def wake(self) -> None:
        """End all sleeps: the run is stopped, and its code must see that."""
        for _, woken in self._sleeps.values():
            _set(woken)

    def wake_until(self, time_us: int) -> None:
        """Let the sleeps that end by a time look at the clock."""
        for ends_at_us, woken in self._sleeps.values():
            if ends_at_us <= time_us:
                _set(woken)

    async def wait_for_change(self, *signals: Once[Any]) -> None:
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

    def _look(self) -> None:
        self._is_looked_at_soon = False
        run = self._run
        until_us = asleep_until_us(run)
        if until_us is None:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _set(waiter)
        if seconds_until(until_us) >= SHORTEST_SUSPENSION_SECONDS and not self._suspends_soon:
            self._suspends_soon = True
            run.loop.call_later(SETTLING_SECONDS, self._suspend)
        self._sleepers.on_asleep(run)
        if run.caller is not None:
            run.caller.sleeps().call_finished()

    def _suspend(self) -> None:
        self._suspends_soon = False
        run = self._run
        until_us = asleep_until_us(run)
        if until_us is not None and not run.closed and run.stopped is None:
            run.observed.suspended(until_us)


def asleep_until_us(run: SuspendableRun) -> int | None:
    """Return when the first of a run's sleeps ends, ``None`` if the run is not asleep.

    Returns:
        Microseconds since 1970, UTC.
    """
    ends = run.sleeping.ends_us() if run.sleeping is not None else []
    for child in run.awaited:
        end = asleep_until_us(child)
        if end is not None:
            ends.append(end)
    log = run.log
    return min(ends) if ends and log.finished_calls + len(ends) == log.calls else None


def seconds_until(time_us: int) -> float:
    """Return how many seconds are left until a time, 0 or less if it is over."""
    return time_us / 1_000_000 - time.time()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
