"""DBOS, with its asynchronous functions, as its documentation has it."""

from __future__ import annotations

import asyncio
import sqlite3

from dbos import DBOS, DBOSConfig

__all__ = ["DBOSContestant", "DBOSInWAL", "config"]

STARTS_AT_ONCE = 100


def config(url: str) -> DBOSConfig:
    """Return its configuration: the default one, but for log lines below errors."""
    return DBOSConfig(
        name="benchmarks", system_database_url=url, log_level="ERROR", console_log_level="CRITICAL"
    )


class DBOSContestant:
    """Runs workflows with DBOS.

    Args:
        url: Its database.
    """

    def __init__(self, url: str) -> None:
        DBOS(config=config(url))
        self._waiting = asyncio.Semaphore(0)
        self._gate: asyncio.Event | None = None

        # Names as short as everybody's, not those of functions inside a method.
        @DBOS.step(name="step")
        async def step(number: int) -> int:
            return number + 1

        @DBOS.step(name="gated_step")
        async def gated_step(number: int) -> int:
            if self._gate is not None:
                self._waiting.release()
                await self._gate.wait()
            return number + 1

        @DBOS.workflow(name="work")
        async def work(number: int, steps: int) -> int:
            for _ in range(steps):
                number = await step(number)
            return number

        @DBOS.workflow(name="gated")
        async def gated(number: int, steps: int, closed_at: int) -> int:
            for place in range(steps):
                number = await (gated_step(number) if place == closed_at else step(number))
            return number

        self._work, self._gated = work, gated

    async def open(self) -> None:
        """Create the tables, and take up what was interrupted."""
        DBOS.launch()

    async def close(self) -> None:
        """Stop."""
        DBOS.destroy()

    async def run(self, steps: int, number: int) -> int:
        """Run a workflow and return its result."""
        return await self._work(number, steps)

    async def start_waiting(self, count: int, steps: int, closed_at: int) -> None:
        """Start workflows, and return once all are waiting inside a step."""
        self._gate = self._gate or asyncio.Event()
        for begin in range(0, count, STARTS_AT_ONCE):
            numbers = range(begin, min(begin + STARTS_AT_ONCE, count))
            starts = [
                DBOS.start_workflow_async(self._gated, number, steps, closed_at)
                for number in numbers
            ]
            await asyncio.gather(*starts)
        for _ in range(count):
            await self._waiting.acquire()


class DBOSInWAL(DBOSContestant):
    """The same on a file that was put into WAL mode before, which DBOS itself does not do."""

    def __init__(self, url: str) -> None:
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        super().__init__(url)
