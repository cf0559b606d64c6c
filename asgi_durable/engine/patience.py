"""Trying again while the database is unavailable."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asgi_durable.errors import StorageUnavailableError

__all__ = ["while_unavailable"]

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0

ResultT = TypeVar("ResultT")


async def while_unavailable(
    once: Callable[[], Awaitable[ResultT]], patience_seconds: float
) -> ResultT:
    """Do something, again while the database is unavailable, for so long at most.

    Raises:
        StorageUnavailableError: It still was at the end of that.
    """
    give_up_at = time.monotonic() + patience_seconds
    delay = FIRST_RETRY_SECONDS
    while True:
        try:
            return await once()
        except StorageUnavailableError:
            if time.monotonic() + delay > give_up_at:
                raise
        await asyncio.sleep(delay * (1.0 + random.random() * 0.2))
        delay = min(delay * 2, LONGEST_RETRY_SECONDS)
