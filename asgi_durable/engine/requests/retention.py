"""For how long requests are kept, and forgetting those whose time is over."""

from __future__ import annotations

import asyncio
import logging
import time

from asgi_durable.errors import StorageError
from asgi_durable.fast_dataclass import value_class
from asgi_durable.storage.protocol import StepLog

__all__ = [
    "DAY_SECONDS",
    "REQUEST_LIFETIME_SECONDS",
    "SWEEP_INTERVAL_SECONDS",
    "Retention",
    "Sweeper",
]

logger = logging.getLogger(__name__)

DAY_SECONDS = 24 * 60 * 60.0
REQUEST_LIFETIME_SECONDS = 7 * DAY_SECONDS
SWEEP_INTERVAL_SECONDS = 60.0
SWEEP_BATCH = 500
# What others have to write gets its turn between two batches.
BATCH_PAUSE_SECONDS = 0.1
MICROSECONDS = 1_000_000
# No database can hold a time without end.
LONGEST_SECONDS = 36500 * DAY_SECONDS


@value_class()
class Retention:
    """For how long a request is kept, from its completion.

    Attributes:
        seconds: How long its answer is given.
        tombstone_seconds: How long its key is refused after that, until it is free.
    """

    seconds: float = DAY_SECONDS
    tombstone_seconds: float = 0.0

    def ends_of(self, finished_at_us: int) -> tuple[int, int]:
        """Return when the answer expires and when the key is free, in microseconds."""
        expires_at_us = finished_at_us + _microseconds(self.seconds)
        return expires_at_us, expires_at_us + _microseconds(self.tombstone_seconds)


class Sweeper:
    """Forgets requests in the background, where the heartbeat runs.

    That event loop lives from the engine's start to its end, whatever the application's do; a
    sweep under way is cancelled with it.

    Args:
        storage: Where the requests are.
        lifetime_seconds: For how long a request is kept that waits for its retry.
        interval_seconds: From the start to the first sweep, and from each to the next.
    """

    def __init__(
        self,
        storage: StepLog,
        *,
        lifetime_seconds: float = REQUEST_LIFETIME_SECONDS,
        interval_seconds: float = SWEEP_INTERVAL_SECONDS,
    ) -> None:
        self._storage = storage
        self._lifetime_us = _microseconds(lifetime_seconds)
        self._interval_seconds = interval_seconds
        self._due_at = time.monotonic() + interval_seconds
        self._task: asyncio.Task[None] | None = None

    def sweep_if_due(self) -> None:
        """Sweep on the running event loop, if it is time and no sweep is under way."""
        is_sweeping = self._task is not None and not self._task.done()
        if not is_sweeping and time.monotonic() >= self._due_at:
            self._task = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        try:
            await self._forget_all()
        except StorageError as error:
            logger.warning("Expired requests cannot be forgotten for now: %s", error)
        except Exception:  # a defect must not end the sweeps
            logger.exception("Expired requests cannot be forgotten for now")
        self._due_at = time.monotonic() + self._interval_seconds

    async def _forget_all(self) -> None:
        now_us = time.time_ns() // 1000
        while True:
            count = await self._storage.forget_expired(
                now_us, abandoned_before_us=now_us - self._lifetime_us, limit=SWEEP_BATCH
            )
            if count < SWEEP_BATCH:
                return
            await asyncio.sleep(BATCH_PAUSE_SECONDS)


def _microseconds(seconds: float) -> int:
    return round(min(seconds, LONGEST_SECONDS) * MICROSECONDS)
