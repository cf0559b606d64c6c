"""Resolving a future of an event loop from another thread."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["resolve_from_thread"]


def resolve_from_thread(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    result: object,
    error: BaseException | None,
) -> None:
    """Give a future its result or its error, unless it is done by then.

    Args:
        loop: The future's event loop. Nothing happens if it is closed: nobody waits there.
        future: The future.
        result: Its result, if there is no error.
        error: Its error.
    """
    try:
        loop.call_soon_threadsafe(_resolve, future, result, error)
    except RuntimeError:  # the event loop is closed
        return


def _resolve(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
