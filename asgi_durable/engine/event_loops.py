"""Which event loops the engine can work on."""

from __future__ import annotations

import asyncio

from asgi_durable.errors import DurableUsageError

__all__ = ["require_asyncio"]


def require_asyncio() -> asyncio.AbstractEventLoop:
    """Check that async code runs on asyncio: the engine and its drivers wait for its futures.

    Returns:
        The running event loop.

    Raises:
        DurableUsageError: It runs on another event loop, as trio's.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        msg = (
            "durable functions and requests with a key need asyncio, and this code runs on another "
            "event loop, trio's perhaps: run it with asyncio ('hypercorn --worker-class asyncio')"
        )
        raise DurableUsageError(msg) from None
