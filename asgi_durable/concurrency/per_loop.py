"""An object that every event loop needs one of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["PerLoop"]

ObjectT = TypeVar("ObjectT")


class PerLoop(Generic[ObjectT]):
    """Makes one object for each running event loop, and forgets those of closed loops.

    An application without a lifespan may be called on one event loop after another.
    """

    def __init__(self, make: Callable[[], ObjectT]) -> None:
        self._make = make
        self._objects: dict[asyncio.AbstractEventLoop, ObjectT] = {}

    def items(self) -> list[tuple[asyncio.AbstractEventLoop, ObjectT]]:
        """Return each event loop that has an object, with its object."""
        return list(self._objects.items())

    def get(self, loop: asyncio.AbstractEventLoop) -> ObjectT:
        """Return the object of *loop*, which must be running here.

        The loop is a parameter because looking it up is a system call before Python 3.12.
        """
        found = self._objects.get(loop)
        if found is None:
            # A weak dictionary would never drop a loop: tasks and locks refer to theirs.
            for closed in [other for other in list(self._objects) if other.is_closed()]:
                self._objects.pop(closed, None)
            found = self._objects[loop] = self._make()
        return found
