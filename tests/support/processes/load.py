"""Callers that keep the counting service busy while its database fails."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from support.processes.counting import Service, post_anywhere, until

AT_ONCE = 30
LONGEST_STEP_SECONDS = 0.1
PATHS = ("/steps", "/child/work")


class Load:
    """Keyed requests, one after the other from many clients at once, until it is over.

    Attributes:
        answers: The response to each, by its name.
    """

    def __init__(self, service: Service, seed: int) -> None:
        self.answers: dict[str, httpx.Response] = {}
        self._answered_at: list[float] = []
        self._service = service
        self._choices = random.Random(seed)
        self._is_over = False
        self._count = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send requests; at the end, wait until all are answered."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60.0, limits=limits) as client:
            tasks = [asyncio.ensure_future(self._ask(client)) for _ in range(AT_ONCE)]
            try:
                yield
            finally:
                self._is_over = True
                await asyncio.gather(*tasks)

    async def until_answered_after(self, at: float) -> None:
        """Wait for a response after a moment, by ``time.monotonic()``."""

        async def is_answered() -> bool:
            return bool(self._answered_at) and self._answered_at[-1] > at

        await until(is_answered)

    def seconds_to_next_answer(self, at: float) -> float:
        """Return how long the first response after a moment took."""
        return min(answered_at for answered_at in self._answered_at if answered_at > at) - at

    async def _ask(self, client: httpx.AsyncClient) -> None:
        while not self._is_over:
            name = f"r{self._count}"
            self._count += 1
            seconds = [self._choices.uniform(0.0, LONGEST_STEP_SECONDS) for _ in range(3)]
            urls = self._choices.sample(self._service.urls, len(self._service.urls))
            path = self._choices.choice(PATHS)
            body = {"name": name, "seconds": seconds}
            self.answers[name] = await post_anywhere(client, urls, path, key=name, json=body)
            self._answered_at.append(time.monotonic())
