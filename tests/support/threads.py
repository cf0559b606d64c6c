"""Threads that tests call in, and that they make wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 60.0


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a thread, while the event loop continues."""
    return await asyncio.to_thread(function, *args)


class ThreadGate:
    """A place where a thread waits until it is opened.

    Attributes:
        reached: Set when a thread waits, or has passed.
        opened: Set once everybody may pass.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        """Wait here."""
        self.reached.set()
        assert self.opened.wait(PATIENCE_SECONDS)

    async def is_reached(self) -> None:
        """Wait until a thread is here."""
        assert await asyncio.to_thread(self.reached.wait, PATIENCE_SECONDS)
