"""Tasks that are cancelled at one await after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any


class Cancelled:
    """Awaits some work, and cancels the task at one of the places where the work waits.

    Args:
        work: The work.
        place: The place to cancel at, counted from 1.
        and_after: True to cancel it at all places after that as well.
    """

    def __init__(self, work: Awaitable[Any], place: int, *, and_after: bool) -> None:
        self._work = work
        self._place = place
        self._and_after = and_after
        self.places = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        """Await it."""
        steps = self._work.__await__()
        task = asyncio.current_task()
        assert task is not None
        go_on: Callable[[], Any] = steps.__next__
        while True:
            try:
                waits_for = go_on()
            except StopIteration as end:
                return end.value
            self.places += 1
            if self.places == self._place or (self._and_after and self.places > self._place):
                task.cancel()
            try:
                yield waits_for
            except BaseException as error:
                go_on = _throwing(steps, error)
            else:
                go_on = steps.__next__


def _throwing(steps: Generator[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)


async def cancel_at_each_await(
    work: Callable[[], Awaitable[Any]],
    check: Callable[[], Awaitable[object]],
    *,
    and_after: bool,
) -> int:
    """Do some work, cancelled at the first await, at the second and so on until it is done.

    Args:
        work: Is done each time.
        check: Called after each time.
        and_after: True to cancel at all awaits after that one as well.

    Returns:
        How many awaits there are.
    """
    place = 0
    while True:
        place += 1
        cancelled = Cancelled(work(), place, and_after=and_after)

        async def run(cancelled: Cancelled = cancelled) -> None:
            await cancelled

        await asyncio.wait([asyncio.ensure_future(run())])
        await check()
        if cancelled.places < place:
            return place - 1
