"""Deletes requests whose retention is over."""

from __future__ import annotations

import asyncio
import logging
import time

from asgi_durable.engine.process.settings import (
    REQUEST_LIFETIME_SECONDS,
    SWEEP_INTERVAL_SECONDS,
    microseconds,
)
from asgi_durable.errors import StorageError
from asgi_durable.storage.protocol import StepLog

__all__ = ["Sweeper"]

logger = logging.getLogger(__name__)

SWEEP_BATCH = 500
# Other writes get their turn between two batches.
BATCH_PAUSE_SECONDS = 0.1


class Sweeper:
    """Deletes requests in the background, on the event loop of the heartbeat.

    The heartbeat's loop runs from the engine's start to its end, unlike the loops of the
    application; a running sweep is cancelled with it.

    Args:
        storage: The step log.
        lifetime_seconds: How long a request that waits for its retry is stored.
        interval_seconds: The time from the start to the first sweep, and between two sweeps.
    """

    def __init__(
        self,
        storage: StepLog,
        *,
        lifetime_seconds: float = REQUEST_LIFETIME_SECONDS,
        interval_seconds: float = SWEEP_INTERVAL_SECONDS,
    ) -> None:
        self._storage = storage
        self._lifetime_us = microseconds(lifetime_seconds)
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
