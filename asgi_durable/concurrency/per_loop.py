"""A thing of which every event loop needs its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["PerLoop"]

ThingT = TypeVar("ThingT")


class PerLoop(Generic[ThingT]):
    """Makes one for each running event loop, and forgets those of closed ones.

    An application without a lifespan may be called on one event loop after another.
    """

    def __init__(self, make: Callable[[], ThingT]) -> None:
        self._make = make
        self._things: dict[asyncio.AbstractEventLoop, ThingT] = {}

    def items(self) -> list[tuple[asyncio.AbstractEventLoop, ThingT]]:
        """Return each event loop that has one, and that."""
        return list(self._things.items())

    def get(self, loop: asyncio.AbstractEventLoop) -> ThingT:
        """Return the own one of *loop*, which must be running here.

        Callers that have the loop pass it on: asking for it is a system call before
        Python 3.12.
        """
        thing = self._things.get(loop)
        if thing is None:
            # Not a weak dictionary: tasks and locks refer to their loop.
            for closed in [other for other in list(self._things) if other.is_closed()]:
                self._things.pop(closed, None)
            thing = self._things[loop] = self._make()
        return thing
