"""Options of a step: its retries, its timeout, its effects, and whether it runs at most once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from asgi_durable.errors import DurableUsageError
from asgi_durable.retry import RetryPolicy

__all__ = ["DEFAULT_RETRY", "StepOptions"]

# The default of `retry=`; the same object tells that the application did not set it.
DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """Options of a step.

    Attributes:
        retry: When the step is retried; ``None`` for one attempt.
        timeout_seconds: Time limit of each attempt, ``None`` for no limit.
        at_most_once: True if its body is never begun a second time.
        has_effects: False if its body only reads or computes.
    """

    retry: RetryPolicy | None = None
    timeout_seconds: float | None = None
    at_most_once: bool = False
    has_effects: bool = True

    def of(self, name: str, *, is_async: bool) -> Self:
        """Return these options, checked for a step.

        Args:
            name: The step's name.
            is_async: True if the step is an ``async def`` function.

        Raises:
            DurableUsageError: The options contradict each other, or do not fit the function.
        """
        timeout = self.timeout_seconds
        if timeout is not None and not 0 < timeout < float("inf"):
            msg = f"step {name!r}: timeout must be a positive number of seconds"
            raise DurableUsageError(msg)
        if timeout is not None and not is_async:
            msg = f"step {name!r}: timeout is for async functions, as no thread can be stopped"
            raise DurableUsageError(msg)
        if not self.at_most_once:
            return self
        if not self.has_effects:
            msg = (
                f"step {name!r}: a step without effects may run again; leave out effects=, or "
                "at_most_once="
            )
            raise DurableUsageError(msg)
        retry = self.retry
        if retry is not None and retry is not DEFAULT_RETRY and retry.max_attempts > 1:
            msg = (
                f"step {name!r}: a step that runs at most once is not retried; leave out retry=, "
                "or at_most_once="
            )
            raise DurableUsageError(msg)
        return replace(self, retry=None)
