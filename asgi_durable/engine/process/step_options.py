"""How a step is run, and how often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from asgi_durable.errors import DurableUsageError
from asgi_durable.retry import RetryPolicy

__all__ = ["DEFAULT_RETRY", "StepOptions"]

# This very object, where an application says nothing.
DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """How a step is run.

    Attributes:
        retry: When it is tried again; ``None`` for one attempt.
        timeout_seconds: For each attempt, ``None`` for any time.
        at_most_once: True if its body is never begun a second time.
    """

    retry: RetryPolicy | None = None
    timeout_seconds: float | None = None
    at_most_once: bool = False

    def of(self, name: str, *, is_async: bool) -> Self:
        """Return the options of a step.

        Args:
            name: The step.
            is_async: True if it is an ``async def`` function.

        Raises:
            DurableUsageError: They do not fit each other, or the function.
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
        retry = self.retry
        if retry is not None and retry is not DEFAULT_RETRY and retry.max_attempts > 1:
            msg = (
                f"step {name!r}: what runs at most once is not tried again; leave out retry=, "
                "or at_most_once="
            )
            raise DurableUsageError(msg)
        return replace(self, retry=None)
