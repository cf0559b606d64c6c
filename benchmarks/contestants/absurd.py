"""Absurd, whose tasks are queued and claimed: each caller spawns one and then runs one."""

from __future__ import annotations

from typing import Any

import asyncpg
from absurd_sdk import AsyncAbsurd, AsyncTaskContext
from absurdctl import BUNDLED_SCHEMA_SQL

__all__ = ["AbsurdContestant"]

TASK = "work"


async def work(params: Any, ctx: AsyncTaskContext) -> int:
    """Call the step, over and over."""
    number: int = params["number"]

    async def step() -> int:
        return number + 1

    for place in range(params["steps"]):
        number = await ctx.step(f"step-{place}", step)
    return number


class AbsurdContestant:
    """Runs tasks with Absurd.

    It has no call that runs a task at once. A caller here has a connection of its own, spawns
    a task, claims one and runs it: no wait for a poll, which is its best case.

    Args:
        url: Its database.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[AsyncAbsurd] = []
        self._clients: list[AsyncAbsurd] = []

    async def open(self) -> None:
        """Create the tables and the queue."""
        connection = await asyncpg.connect(self._url)
        try:
            await connection.execute(BUNDLED_SCHEMA_SQL)
        finally:
            await connection.close()
        client = self._take()
        await client.create_queue()
        self._idle.append(client)

    async def close(self) -> None:
        """Disconnect."""
        for client in self._clients:
            await client.close()

    async def run(self, steps: int, number: int) -> None:
        """Spawn a task and run one."""
        client = self._take()
        await client.spawn(TASK, {"number": number, "steps": steps})
        await client.work_batch()
        self._idle.append(client)

    def _take(self) -> AsyncAbsurd:
        if self._idle:
            return self._idle.pop()
        client = AsyncAbsurd(self._url)
        client.register_task(TASK)(work)
        self._clients.append(client)
        return client
