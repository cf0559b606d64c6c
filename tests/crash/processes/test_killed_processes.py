"""Four processes serve one database; under load, one after the other is ended and started again."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from support.processes.counting import POLL_SECONDS, Service, new_seed, post_anywhere, show, until
from support.processes.server import Server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.measures_time,
    pytest.mark.needs_sessions("nobody is told when a process has left"),
]

PROCESSES = 4
LEASE_SECONDS = 5.0
AT_ONCE = 100
LONGEST_STEP_SECONDS = 0.2
PATHS = ("/steps", "/child/work")
BACKGROUND_STEP_SECONDS = 0.05


async def answers_of(service: Service, seed: int, requests: int) -> list[httpx.Response]:
    """Send so many requests of three steps and a transaction, until each is answered."""
    choices = random.Random(seed)
    at_once = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=30.0, limits=limits) as client:

        async def ask(number: int) -> httpx.Response:
            seconds = [choices.uniform(0.0, LONGEST_STEP_SECONDS) for _ in range(3)]
            body = {"name": f"r{number}", "seconds": seconds}
            urls = choices.sample(service.urls, PROCESSES)
            path = choices.choice(PATHS)
            async with at_once:
                return await post_anywhere(client, urls, path, key=f"r{number}", json=body)

        return await asyncio.gather(*(ask(number) for number in range(requests)))


@asynccontextmanager
async def ending_one_each_second(
    service: Service, how: signal.Signals, seed: int
) -> AsyncIterator[list[int]]:
    """End the processes one after the other, and start each again; give the exit codes."""
    choices = random.Random(seed)
    codes: list[int] = []
    is_over = asyncio.Event()

    async def end_and_start() -> None:
        while not is_over.is_set():
            next_at = time.monotonic() + choices.uniform(0.5, 1.5)
            server = await next_at_work(service, is_over)
            if server is None:
                return
            # Not at once: who is ended at each of its beginnings never comes to an end.
            await asyncio.sleep(choices.uniform(0.0, LONGEST_STEP_SECONDS))
            codes.append(await service.end(server, how))
            await service.note_recorded()
            await asyncio.to_thread(server.start)
            await asyncio.sleep(next_at - time.monotonic())

    task = asyncio.ensure_future(end_and_start())
    try:
        yield codes
    finally:
        is_over.set()
        await task


async def next_at_work(service: Service, is_over: asyncio.Event) -> Server | None:
    """Return the process that begins the next step, ``None`` if all is over before."""
    begun = len(service.ledger())
    while not is_over.is_set():
        for entry in service.ledger()[begun:]:
            for server in service.servers:
                if server.pid == entry.pid:
                    return server
        await asyncio.sleep(POLL_SECONDS)
    return None


async def test_500_requests_survive_a_kill_each_second_each_exactly_once(
    tmp_path: Path, postgres_url: str
) -> None:
    seed, requests = new_seed(), 500
    service = Service(tmp_path, postgres_url, size=PROCESSES, lease=LEASE_SECONDS)
    with service.running():
        began_at = time.monotonic()
        async with ending_one_each_second(service, signal.SIGKILL, seed) as codes:
            answers = await answers_of(service, seed, requests)
            show("all are answered", [time.monotonic() - began_at])
        takeovers = [takeover.seconds for takeover in await service.takeovers()]
        show(f"taken over after one of {len(codes)} kills", takeovers)

        assert [answer.text for answer in answers if answer.status_code != 200] == []
        assert await service.effects() == {f"r{number}": 1 for number in range(requests)}
        assert service.repeated_steps() == []
        assert set((await service.states()).values()) == {"SUCCESS"}
        assert max(takeovers) < 2 * LEASE_SECONDS


async def test_processes_that_are_stopped_under_load_hand_their_work_over_at_once(
    tmp_path: Path, postgres_url: str
) -> None:
    seed, requests = new_seed(), 100
    service = Service(
        tmp_path, postgres_url, size=PROCESSES, lease=LEASE_SECONDS, drain_timeout=0.3
    )
    names = [f"w{number}" for number in range(20)]
    with service.running():
        async with httpx.AsyncClient(timeout=30.0) as client:
            for number, name in enumerate(names):
                url = f"{service.urls[number % PROCESSES]}/start/work"
                body = {"name": name, "seconds": [BACKGROUND_STEP_SECONDS] * 100}
                (await client.post(url, json=body)).raise_for_status()
        async with ending_one_each_second(service, signal.SIGTERM, seed) as codes:
            answers = await answers_of(service, seed, requests)

            async def are_finished() -> bool:
                return "PENDING" not in (await service.states()).values()

            await until(are_finished)
        handovers = [t.seconds for t in await service.takeovers() if t.workflow_id in names]
        show(f"handed over after one of {len(codes)} stops", handovers)

        assert [answer.text for answer in answers if answer.status_code != 200] == []
        assert set(codes) <= {0, -signal.SIGTERM}
        everything = [*(f"r{number}" for number in range(requests)), *names]
        assert await service.effects() == dict.fromkeys(everything, 1)
        assert service.repeated_steps() == []
        assert set((await service.states()).values()) == {"SUCCESS"}
        assert statistics.median(handovers) < 1
        assert max(handovers) < LEASE_SECONDS
