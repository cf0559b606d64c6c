"""Retrying while the database is unavailable."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asgi_durable.concurrency.backoff import Backoff
from asgi_durable.errors import StorageUnavailableError
from asgi_durable.storage.transaction_port import GivenUpError

__all__ = ["retry_while_given_up", "retry_while_unavailable"]

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0
RETRY_JITTER = 0.2
# A transaction that the database gave up, for example for another one, may well succeed next time.
FEWEST_ATTEMPTS_GIVEN_UP = 3

ResultT = TypeVar("ResultT")


async def retry_while_unavailable(
    attempt: Callable[[], Awaitable[ResultT]], storage_retry_seconds: float, name: Callable[[], str]
) -> ResultT:
    """Retry while the database is unavailable, or gives the transaction up.

    Args:
        attempt: Makes one attempt.
        storage_retry_seconds: How long to retry.
        name: Names the work for the log.

    Raises:
        StorageUnavailableError: The database was still unavailable after that time.
        Exception: The database's own error, if it gave the transaction up each time.
    """
    return await _retry(StorageUnavailableError, attempt, storage_retry_seconds, name)


async def retry_while_given_up(
    attempt: Callable[[], Awaitable[ResultT]], storage_retry_seconds: float, name: Callable[[], str]
) -> ResultT:
    """Retry while the database gives the transaction up; raise at once if it is unavailable."""
    return await _retry(GivenUpError, attempt, storage_retry_seconds, name)


async def _retry(
    kind: type[StorageUnavailableError],
    attempt: Callable[[], Awaitable[ResultT]],
    storage_retry_seconds: float,
    name: Callable[[], str],
) -> ResultT:
    give_up_at = time.monotonic() + storage_retry_seconds
    backoff: Backoff | None = None
    while True:
        try:
            return await attempt()
        except kind as error:
            failure = error
        # Made here, so that work that succeeds at once does not pay for it.
        backoff = backoff or Backoff(
            FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, jitter=RETRY_JITTER
        )
        number = backoff.attempt
        fewest = FEWEST_ATTEMPTS_GIVEN_UP if isinstance(failure, GivenUpError) else 1
        if number >= fewest and time.monotonic() + backoff.seconds > give_up_at:
            break
        if backoff.is_worth_logging():
            logger.warning("%s failed, attempt %d, trying again: %s", name(), number, failure)
        await backoff.wait()
    logger.warning("%s failed, attempt %d was the last one: %s", name(), number, failure)
    # The error of a transaction that the database gave up is the transaction's own.
    raise _cause_of(failure)


def _cause_of(failure: StorageUnavailableError) -> BaseException:
    is_given_up = isinstance(failure, GivenUpError) and failure.__cause__ is not None
    return failure.__cause__ or failure if is_given_up else failure
