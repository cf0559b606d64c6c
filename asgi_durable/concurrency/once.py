"""A value that is set once, and awaited by any number of tasks."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

__all__ = ["Once", "wait_for_first"]

ValueT = TypeVar("ValueT")


class Once(Generic[ValueT]):
    """Like a future, but nobody who waits for it can cancel it for the others.

    Waiting costs a future, and only where the value is not there yet; ``asyncio.shield``
    around a shared future would cost two. All of it belongs to one event loop.
    """

    __slots__ = ("_is_set", "_loop", "_value", "_waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._value: ValueT | None = None
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        """Tell whether the value is there."""
        return self._is_set

    def set(self, value: ValueT) -> None:
        """Set the value, unless one is there already, and wake who waits."""
        if self._is_set:
            return
        self._is_set = True
        self._value = value
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def get(self) -> ValueT:
        """Return the value.

        Raises:
            asyncio.InvalidStateError: It is not there yet.
        """
        if not self._is_set:
            raise asyncio.InvalidStateError
        return self._value  # type: ignore[return-value]

    def add_waiter(self, waiter: asyncio.Future[None]) -> None:
        """Wake somebody who waits for other things as well, once the value is there."""
        if self._is_set:
            waiter.set_result(None)
        elif self._waiters is None:
            self._waiters = [waiter]
        else:
            self._waiters.append(waiter)

    def has_waiters(self) -> bool:
        """Tell whether anybody waits for the value at this moment."""
        return any(not waiter.done() for waiter in self._waiters or ())

    async def wait(self) -> ValueT:
        """Return the value, once it is there."""
        if not self._is_set:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self.add_waiter(waiter)
            await waiter
        return self._value  # type: ignore[return-value]


async def wait_for_first(*signals: Once[Any]) -> None:
    """Wait until one of some signals of this event loop is set."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for signal in signals:
        if signal.is_set():
            return
        signal.add_waiter(waiter)
    await waiter
