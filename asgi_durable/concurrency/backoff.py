"""Waits that grow longer each time, and how often a repeated failure is logged."""

from __future__ import annotations

import random

import anyio

__all__ = ["Backoff", "is_worth_logging"]


class Backoff:
    """The waits of one loop that repeats something until it succeeds.

    Each wait is *factor* times as long as the one before it, up to *longest*.

    Args:
        first: Seconds of the first wait.
        longest: Seconds of the longest wait, without its jitter.
        jitter: Share of a wait that is added at random, for example 0.2 for up to a fifth. It
            keeps processes that fail together from retrying together.
        factor: Growth from one wait to the next.

    Attributes:
        seconds: The next wait, without its jitter.
        attempt: Number of the current attempt, from 1; each wait leads to the next one.
    """

    __slots__ = ("_factor", "_first", "_jitter", "_longest", "attempt", "seconds")

    def __init__(
        self, first: float, longest: float, *, jitter: float = 0.0, factor: float = 2.0
    ) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._factor = factor
        self.seconds = first
        self.attempt = 1

    def next(self) -> float:
        """Return the seconds to wait now; the wait after this one is longer."""
        seconds = self.seconds
        self.seconds = min(seconds * self._factor, self._longest)
        self.attempt += 1
        return self.with_jitter(seconds)

    def with_jitter(self, seconds: float) -> float:
        """Return a wait, made longer by up to the jitter's share of it."""
        return seconds * (1.0 + random.random() * self._jitter)

    async def wait(self) -> None:
        """Wait on the running event loop; the wait after this one is longer."""
        await anyio.sleep(self.next())

    def reset(self) -> None:
        """Begin again with the first attempt and the first wait."""
        self.seconds = self._first
        self.attempt = 1

    def is_worth_logging(self) -> bool:
        """Tell whether the failure of the current attempt deserves a log line."""
        return is_worth_logging(self.attempt)


def is_worth_logging(failures: int) -> bool:
    """Tell whether a failure deserves a log line: the 1st, 2nd, 4th, 8th ... in a row does.

    Args:
        failures: Number of this failure, from 1.
    """
    return failures & (failures - 1) == 0
