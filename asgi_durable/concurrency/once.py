"""A value that is set once and awaited by any number of tasks."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

__all__ = ["Once", "wait_for_first"]

ValueT = TypeVar("ValueT")


class Once(Generic[ValueT]):
    """A value that is set once; a future that no waiting task can cancel for the others.

    Waiting costs one future, and none if the value is set already; ``asyncio.shield`` around a
    shared future would cost two. Everything here belongs to one event loop.
    """

    __slots__ = ("_is_set", "_loop", "_value", "_waiters")

    # Unset until the value is there.
    _value: ValueT

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        """Tell whether the value is set."""
        return self._is_set

    def set(self, value: ValueT) -> None:
        """Set the value, unless it is set already, and wake the waiting tasks."""
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
            asyncio.InvalidStateError: It is not set yet.
        """
        if not self._is_set:
            raise asyncio.InvalidStateError
        return self._value

    def add_waiter(self, waiter: asyncio.Future[None]) -> None:
        """Resolve a future once the value is set; for tasks that await several things."""
        if self._is_set:
            waiter.set_result(None)
        elif self._waiters is None:
            self._waiters = [waiter]
        else:
            self._waiters.append(waiter)

    def has_waiters(self) -> bool:
        """Tell whether a task waits for the value at this moment."""
        return any(not waiter.done() for waiter in self._waiters or ())

    async def wait(self) -> ValueT:
        """Return the value once it is set."""
        if not self._is_set:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self.add_waiter(waiter)
            await waiter
        return self._value


async def wait_for_first(*values: Once[Any]) -> None:
    """Wait until one of several values of this event loop is set."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for value in values:
        if value.is_set():
            return
        value.add_waiter(waiter)
    await waiter
