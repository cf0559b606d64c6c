"""Workers of one ``uvicorn --workers`` on one SQLite file are killed, one after the other."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from support.processes.counting import Service, new_seed, post_anywhere, show

pytestmark = [pytest.mark.anyio, pytest.mark.measures_time]

WORKERS = 4
REQUESTS = 200
AT_ONCE = 20
LONGEST_STEP_SECONDS = 0.2
PATHS = ("/steps", "/child/work")


@asynccontextmanager
async def killing_workers(service: Service, seed: int) -> AsyncIterator[list[int]]:
    """Kill the worker that responds, again and again; return the killed ones."""
    moments = random.Random(seed)
    killed: list[int] = []
    is_over = asyncio.Event()

    async def kill_some() -> None:
        while not is_over.is_set():
            pid = await pid_of_a_worker(service.urls[0])
            await service.note_recorded()
            os.kill(pid, signal.SIGKILL)
            service.ends[pid] = time.time()
            killed.append(pid)
            # The supervisor looks after its workers twice a second.
            await asyncio.sleep(moments.uniform(0.3, 1.3))

    task = asyncio.ensure_future(kill_some())
    try:
        yield killed
    finally:
        is_over.set()
        await task


async def pid_of_a_worker(url: str) -> int:
    """Send a request on a new connection, so that any worker may respond."""
    while True:
        with suppress(httpx.TransportError):
            async with httpx.AsyncClient(timeout=30.0) as client:
                pid: int = (await client.get(f"{url}/plain")).json()["pid"]
                return pid
        await asyncio.sleep(0.01)


async def test_200_requests_are_each_answered_and_carried_out_once(
    tmp_path: Path, sqlite_url: str
) -> None:
    seed = new_seed()
    choices = random.Random(seed)
    names = [f"r{number}" for number in range(REQUESTS)]
    service = Service(tmp_path, sqlite_url, size=1, arguments=("--workers", str(WORKERS)))
    at_once = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=None)

    async def ask(client: httpx.AsyncClient, name: str) -> httpx.Response:
        seconds = [choices.uniform(0.0, LONGEST_STEP_SECONDS) for _ in range(3)]
        body, path = {"name": name, "seconds": seconds}, choices.choice(PATHS)
        async with at_once:
            return await post_anywhere(client, service.urls, path, key=name, json=body)

    with service.running() as (supervisor,):
        began_at = time.monotonic()
        try:
            async with httpx.AsyncClient(timeout=30.0, limits=limits) as client:
                async with killing_workers(service, seed) as killed:
                    answers = await asyncio.gather(*(ask(client, name) for name in names))
            states = await service.states()
        finally:
            # It ends its workers as well; killed, it would leave them behind.
            supervisor.terminate()

    show("all are answered after", [time.monotonic() - began_at])
    takeovers = [takeover.seconds for takeover in await service.takeovers()]
    show(f"taken over after one of {len(killed)} kills", takeovers)
    assert {answer.status_code for answer in answers} == {200}
    assert await service.effects() == dict.fromkeys(names, 1)
    assert service.repeated_steps() == []
    assert set(states.values()) == {"SUCCESS"}
    assert len(killed) >= 3
