"""Threads for work on long bodies: parsing, hashing, reading and writing files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
from anyio.lowlevel import RunVar

__all__ = ["run_in_thread"]

ResultT = TypeVar("ResultT")
Args = TypeVarTuple("Args")

# One for each event loop. Frameworks run `def` handlers within anyio's default limit, and all of
# these may be waiting for the very request whose body is to be read here.
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("asgi_durable_body_threads")


async def run_in_thread(function: Callable[[Unpack[Args]], ResultT], *args: *Args) -> ResultT:
    """Call a function in a thread, and return its result.

    A caller that is cancelled does not stop the function.
    """
    try:
        limiter = _limiter.get()
    except LookupError:
        # As many threads as asyncio's own executor has.
        limiter = anyio.CapacityLimiter(min(32, (os.cpu_count() or 1) + 4))
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(function, *args, limiter=limiter)
