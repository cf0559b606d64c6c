"""A handler that blocks its event loop for longer than the lease, while others watch."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from support.processes.counting import Service

pytestmark = [pytest.mark.anyio, pytest.mark.measures_time]

LEASE_SECONDS = 1.5


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def test_the_process_keeps_its_lease_and_its_workflows_run_once(
    tmp_path: Path, url: str
) -> None:
    service = Service(tmp_path, url, lease=LEASE_SECONDS)
    with service.running() as (blocked, other):
        async with httpx.AsyncClient(timeout=60.0) as client:
            beside = {"name": "beside", "seconds": [0.1] * 10}
            await client.post(f"{blocked.url}/start/work", json=beside)
            body = {"name": "w", "seconds": 3 * LEASE_SECONDS}
            call = client.post(f"{blocked.url}/run/blocking", json=body)
            watched = asyncio.ensure_future(client.post(f"{other.url}/run/work", json=beside))
            answer, seen_by_other = await asyncio.gather(call, watched)

    assert answer.json() == [blocked.pid] * 3
    assert seen_by_other.json() == [blocked.pid] * 11
    steps = [(entry.workflow_id, entry.step) for entry in service.ledger()]
    assert len(steps) == len(set(steps)) == 14
    assert await service.effects() == {"w": 1, "beside": 1}
    assert "declared dead" not in blocked.log + other.log
