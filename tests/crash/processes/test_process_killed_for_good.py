"""One of two processes is killed and never comes back: the other one continues its work."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.processes.counting import Service, new_seed, post_anywhere, show, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.measures_time,
    pytest.mark.needs_sessions("a dead process is noticed when its lease ends"),
]

LEASE_SECONDS = 15.0
WORKFLOWS = 30
STEPS = [0.2] * 5
LONGEST_MEDIAN_SECONDS = 3.0
REQUESTS = 20


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def service(tmp_path: Path, url: str) -> Iterator[Service]:
    service = Service(tmp_path, url, lease=LEASE_SECONDS)
    with service.running():
        yield service


async def test_its_workflows_are_finished_within_seconds_without_any_client(
    service: Service,
) -> None:
    moments = random.Random(new_seed())
    names = [f"w{number}" for number in range(WORKFLOWS)]
    async with httpx.AsyncClient(timeout=30.0) as client:
        url = f"{service.urls[0]}/start/work"
        await asyncio.gather(
            *(client.post(url, json={"name": name, "seconds": STEPS}) for name in names)
        )
    await until_begun(service, WORKFLOWS)
    await asyncio.sleep(moments.uniform(0.0, sum(STEPS) / 2))
    killed_at = time.time()
    await service.end(service.servers[0], signal.SIGKILL)
    await service.note_recorded()

    async def are_finished() -> bool:
        states = await service.states()
        return states == dict.fromkeys(names, "SUCCESS")

    await until(are_finished)

    rows = await service.query("SELECT updated_at_us FROM asgi_durable_workflows")
    ends = [at_us / 1e6 - killed_at for (at_us,) in rows]
    takeovers = [takeover.seconds for takeover in await service.takeovers()]
    show("taken over after", takeovers)
    show("finished after", ends)
    assert len(takeovers) == WORKFLOWS
    assert statistics.median(takeovers) < LONGEST_MEDIAN_SECONDS
    assert max(ends) < LEASE_SECONDS + 2
    assert await service.effects() == dict.fromkeys(names, 1)
    assert service.repeated_steps() == []


@pytest.mark.parametrize("path", ["/steps", "/child/work"])
async def test_its_requests_are_answered_once_their_clients_ask_the_other(
    service: Service, path: str
) -> None:
    moments = random.Random(new_seed())
    names = [f"r{number}" for number in range(REQUESTS)]
    async with httpx.AsyncClient(timeout=30.0) as client:

        async def ask(name: str, urls: list[str]) -> httpx.Response:
            body = {"name": name, "seconds": STEPS}
            return await post_anywhere(client, urls, path, key=name, json=body)

        tasks = [asyncio.ensure_future(ask(name, service.urls)) for name in names]
        await until_begun(service, REQUESTS)
        await asyncio.sleep(moments.uniform(0.0, sum(STEPS) / 2))
        killed_at = time.time()
        await service.end(service.servers[0], signal.SIGKILL)
        await service.note_recorded()
        answers = await asyncio.gather(*tasks)
        seconds = time.time() - killed_at
        again = [await ask(name, service.urls[1:]) for name in names]

    show("answered after", [seconds])
    assert {answer.status_code for answer in answers} == {200}
    assert seconds < LEASE_SECONDS + 2
    assert [answer.content for answer in again] == [answer.content for answer in answers]
    assert {answer.json()[-1] for answer in answers} == {service.servers[1].pid}
    assert await service.effects() == dict.fromkeys(names, 1)
    assert service.repeated_steps() == []
    assert set((await service.states()).values()) == {"SUCCESS"}


async def until_begun(service: Service, count: int) -> None:
    """Wait until so many workflows have begun their first step."""

    async def have_begun() -> bool:
        return len({entry.workflow_id for entry in service.ledger()}) >= count

    await until(have_begun)
