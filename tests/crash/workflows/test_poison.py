"""A workflow that ends its process every time, beside others that do no harm."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import httpx
import pytest
from support.processes.counting import Service, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("a dead process is noticed when its lease ends"),
]

NEIGHBOURS = [f"n{number}" for number in range(5)]
# The first run, and as many as the service allows its workflows.
MOST_RUNS = 1 + 2
# Longer than the poison takes: no neighbour makes any progress beside it.
STEPS = [0.6, 0.6]


async def start_all(url: str) -> None:
    """Start the neighbours and the poison."""
    async with httpx.AsyncClient(timeout=30.0) as client:
        for name in NEIGHBOURS:
            body = {"name": name, "seconds": STEPS}
            (await client.post(f"{url}/start/neighbour", json=body)).raise_for_status()
        (await client.post(f"{url}/start/poison", json={"name": "p"})).raise_for_status()


async def restart_until_finished(service: Service) -> None:
    """Start each process again that has ended, until all workflows are finished."""

    async def are_finished() -> bool:
        for server in service.servers:
            if not server.is_running:
                # It may end again before it serves.
                with contextlib.suppress(AssertionError):
                    await asyncio.to_thread(server.start)
        return "PENDING" not in (await service.states()).values()

    await until(are_finished)


@pytest.mark.parametrize(("database", "processes"), [("sqlite", 1), ("sqlite", 2), ("postgres", 2)])
async def test_it_is_set_aside_after_a_few_runs_and_its_neighbours_are_finished(
    tmp_path: Path, request: pytest.FixtureRequest, database: str, processes: int
) -> None:
    url = request.getfixturevalue(f"{database}_url")
    service = Service(tmp_path, url, size=processes)
    with service.running():
        await start_all(service.urls[0])
        await restart_until_finished(service)
        states = await service.states()
        async with httpx.AsyncClient(timeout=30.0) as client:
            answer = await client.post(f"{service.urls[0]}/run/poison", json={"name": "p"})

    assert states == dict.fromkeys(NEIGHBOURS, "SUCCESS") | {"p": "RETRIES_EXCEEDED"}
    assert await service.effects() == dict.fromkeys(NEIGHBOURS, 1)
    assert len([entry for entry in service.ledger() if entry.workflow_id == "p"]) == MOST_RUNS
    assert answer.status_code == 500
    assert "RecoveryAttemptsExceeded" in answer.text
