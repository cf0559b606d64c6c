"""The library itself, with everything that it does by default."""

from __future__ import annotations

import asyncio

from asgi_durable import Durable

__all__ = ["DurableContestant"]

STARTS_AT_ONCE = 1000


class DurableContestant:
    """Runs workflows with the library.

    Args:
        url: Its database.
    """

    def __init__(self, url: str) -> None:
        self._durable = durable = Durable(url)
        self._waiting = asyncio.Semaphore(0)
        self._gate: asyncio.Event | None = None

        # Names as short as everybody's, not those of functions inside a method.
        @durable.step(name="step")
        async def step(number: int) -> int:
            return number + 1

        @durable.step(name="gated_step")
        async def gated_step(number: int) -> int:
            # Of a process that is started to finish what another one has left it is open.
            if self._gate is not None:
                self._waiting.release()
                await self._gate.wait()
            return number + 1

        @durable.workflow(name="work")
        async def work(number: int, steps: int) -> int:
            for _ in range(steps):
                number = await step(number)
            return number

        @durable.workflow(name="gated")
        async def gated(number: int, steps: int, closed_at: int) -> int:
            for place in range(steps):
                number = await (gated_step(number) if place == closed_at else step(number))
            return number

        self._work, self._gated = work, gated

    async def open(self) -> None:
        """Start, and take up what was interrupted."""
        await self._durable.__aenter__()

    async def close(self) -> None:
        """Stop; what waits is interrupted."""
        await self._durable.__aexit__(None, None, None)

    async def run(self, steps: int, number: int) -> int:
        """Run a workflow and return its result."""
        return await self._work(number, steps)

    async def start_waiting(self, count: int, steps: int, closed_at: int) -> None:
        """Start workflows, and return once all are waiting inside a step."""
        self._gate = self._gate or asyncio.Event()
        for begin in range(0, count, STARTS_AT_ONCE):
            numbers = range(begin, min(begin + STARTS_AT_ONCE, count))
            starts = [
                self._durable.start_workflow(self._gated, number, steps, closed_at)
                for number in numbers
            ]
            await asyncio.gather(*starts)
        for _ in range(count):
            await self._waiting.acquire()
