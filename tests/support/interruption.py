"""A place where a workflow can be made to wait, and be interrupted."""

from __future__ import annotations

import asyncio


class Gate:
    """A place where a step waits for ever, until it is opened.

    Attributes:
        reached: Set when a step waits.
    """

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def wait(self) -> None:
        """Wait here."""
        self.reached.set()
        await self._opened.wait()

    @property
    def is_open(self) -> bool:
        """True once everybody may pass."""
        return self._opened.is_set()

    def open(self) -> None:
        """Let everybody pass."""
        self._opened.set()
