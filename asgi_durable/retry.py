"""Retry policies: how often and how soon a failed step is retried."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a step that raised is retried.

    The wait before attempt n + 1 is ``initial_interval * backoff ** (n - 1)`` seconds, at most
    ``max_interval``, plus a random share of itself of up to ``jitter``.

    Example::

        @durable.step(retry=RetryPolicy(max_attempts=5, retry_on=ConnectionError))
        async def charge(order_id: int) -> str: ...

    Args:
        max_attempts: Number of attempts, the first included; 1 means no retry.
        initial_interval: Seconds between the first and the second attempt.
        backoff: Factor from one wait to the next, from 1.0 to 100.0.
        max_interval: The longest wait in seconds.
        jitter: Greatest share of a wait that is added at random, from 0.0 to 1.0.
        retry_on: Exception classes that are retried, or a function that returns True for an
            exception that is. Any other exception ends the step at once.

    Raises:
        ValueError: A number is outside its range.
    """

    max_attempts: int = 3
    initial_interval: float = 1.0
    backoff: float = 2.0
    max_interval: float = 3600.0
    jitter: float = 0.1
    retry_on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool] = (
        Exception
    )

    def __post_init__(self) -> None:
        """Refuse numbers that make no schedule."""
        checks = {
            "max_attempts must be 1 or more": self.max_attempts >= 1,
            "initial_interval must be 0 or more seconds": self.initial_interval >= 0,
            "backoff must lie between 1.0 and 100.0": 1.0 <= self.backoff <= 100.0,
            "max_interval must be 0 or more seconds": self.max_interval >= 0,
            "jitter must lie between 0.0 and 1.0": 0.0 <= self.jitter <= 1.0,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)

    def wants_retry_of(self, error: Exception) -> bool:
        """Tell whether this kind of error is retried at all."""
        if isinstance(self.retry_on, (type, tuple)):
            return isinstance(error, self.retry_on)
        return self.retry_on(error)

    def delay_seconds(self, failed_attempts: int) -> float:
        """Return the wait in seconds after a number of failed attempts, 1 or more."""
        # The exponent is capped: 2.0 ** 2000 is an OverflowError, not a long wait.
        factor = self.backoff ** min(failed_attempts - 1, 64)
        delay = min(self.initial_interval * factor, self.max_interval)
        return delay * (1.0 + random.random() * self.jitter)
