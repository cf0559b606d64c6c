"""Trying again while the database is unavailable."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asgi_durable.concurrency.retry_log import is_worth_a_line
from asgi_durable.errors import StorageUnavailableError
from asgi_durable.storage.transaction_port import GivenUpError

__all__ = ["retry_while_given_up", "retry_while_unavailable"]

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0
# What the database has given up, for another transaction say, it may well do the next time.
FEWEST_ATTEMPTS_GIVEN_UP = 3

ResultT = TypeVar("ResultT")


async def retry_while_unavailable(
    once: Callable[[], Awaitable[ResultT]], storage_retry_seconds: float, what: Callable[[], str]
) -> ResultT:
    """Do something, again while the database is unavailable or gives it up, for so long at most.

    Args:
        once: Does it.
        storage_retry_seconds: For how long.
        what: Names it for the log.

    Raises:
        StorageUnavailableError: The database still was unavailable at the end of that.
        Exception: The database's own error, if it gave the transaction up each time.
    """
    return await _repeat(StorageUnavailableError, once, storage_retry_seconds, what)


async def retry_while_given_up(
    once: Callable[[], Awaitable[ResultT]], storage_retry_seconds: float, what: Callable[[], str]
) -> ResultT:
    """Do the same, but raise at once where the database is unavailable."""
    return await _repeat(GivenUpError, once, storage_retry_seconds, what)


async def _repeat(
    kind: type[StorageUnavailableError],
    once: Callable[[], Awaitable[ResultT]],
    storage_retry_seconds: float,
    what: Callable[[], str],
) -> ResultT:
    give_up_at = time.monotonic() + storage_retry_seconds
    delay = FIRST_RETRY_SECONDS
    for attempt in itertools.count(1):
        try:
            return await once()
        except kind as error:
            failure = error
        fewest = FEWEST_ATTEMPTS_GIVEN_UP if isinstance(failure, GivenUpError) else 1
        if attempt >= fewest and time.monotonic() + delay > give_up_at:
            break
        if is_worth_a_line(attempt):
            logger.warning("%s failed, attempt %d, trying again: %s", what(), attempt, failure)
        await asyncio.sleep(delay * (1.0 + random.random() * 0.2))
        delay = min(delay * 2, LONGEST_RETRY_SECONDS)
    logger.warning("%s failed, attempt %d was the last one: %s", what(), attempt, failure)
    # Nobody is in its way any more than the database says: it is the transaction's own error.
    raise _cause_of(failure)


def _cause_of(failure: StorageUnavailableError) -> BaseException:
    is_given_up = isinstance(failure, GivenUpError) and failure.__cause__ is not None
    return failure.__cause__ or failure if is_given_up else failure
