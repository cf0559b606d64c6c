"""A process that stands still for longer than its lease, as on a machine that was suspended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.processes.counting import POLL_SECONDS, Service, post_anywhere, until
from support.processes.server import Server

pytestmark = [pytest.mark.anyio, pytest.mark.measures_time]

LEASE_SECONDS = 1.5


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def service(tmp_path: Path, url: str) -> Iterator[Service]:
    service = Service(tmp_path, url, lease=LEASE_SECONDS)
    with service.running():
        yield service


async def stop_outside_of_a_write(service: Service, server: Server) -> None:
    """Stop a process, but not while it has the write lock of a SQLite file.

    No other process can write then until it continues, or ends.
    """
    server.pause()
    while await service.is_locked():
        server.resume()
        await asyncio.sleep(POLL_SECONDS)
        server.pause()


async def until_noted(service: Service, *places: tuple[int, int]) -> None:
    """Wait until the ledger has exactly these steps, each by which process."""

    async def are_noted() -> bool:
        return [(entry.step, entry.pid) for entry in service.ledger()] == list(places)

    await until(are_noted)


async def until_finished(service: Service) -> None:
    async def is_finished() -> bool:
        return await service.states() == {"w": "SUCCESS"}

    await until(is_finished)


async def test_its_late_record_is_refused_and_its_caller_gets_the_next_owners_answer(
    service: Service,
) -> None:
    stopped, other = service.servers
    async with httpx.AsyncClient(timeout=60.0) as client:
        call = asyncio.ensure_future(client.post(f"{stopped.url}/run/gated", json={"name": "w"}))
        await until_noted(service, (0, stopped.pid), (1, stopped.pid))
        await stop_outside_of_a_write(service, stopped)
        # The lease ends, and the other one continues with the second step.
        await until_noted(service, (0, stopped.pid), (1, stopped.pid), (1, other.pid))
        service.open_gate()
        await until_finished(service)
        stopped.resume()
        answer = await call
        again = await client.post(f"{stopped.url}/run/gated", json={"name": "w"})

    assert answer.json() == again.json() == [stopped.pid, other.pid, other.pid]
    assert [(entry.step, entry.pid) for entry in service.ledger()] == [
        (0, stopped.pid),
        (1, stopped.pid),
        (1, other.pid),
        (2, other.pid),
    ]
    assert await service.effects() == {"w": 1}

    async def has_noticed() -> bool:
        return "was declared dead" in stopped.log

    await until(has_noticed)


async def test_it_takes_work_again_as_another_executor(service: Service) -> None:
    stopped, other = service.servers
    async with httpx.AsyncClient(timeout=60.0) as client:
        await client.post(f"{stopped.url}/start/gated", json={"name": "w"})
        await until_noted(service, (0, stopped.pid), (1, stopped.pid))
        await stop_outside_of_a_write(service, stopped)
        await until_noted(service, (0, stopped.pid), (1, stopped.pid), (1, other.pid))
        other.kill()
        stopped.resume()
        service.open_gate()
        await until_finished(service)

    assert await service.effects() == {"w": 1}
    assert service.ledger()[-1].pid == stopped.pid


async def test_its_request_is_answered_elsewhere_and_nothing_of_its_own_counts(
    service: Service,
) -> None:
    stopped, other = service.servers
    body, headers = {"name": "r"}, {"Idempotency-Key": "r"}
    async with httpx.AsyncClient(timeout=60.0) as client:

        async def ask(server: Server) -> httpx.Response:
            return await post_anywhere(client, [server.url], "/gate", key="r", json=body)

        call = client.post(f"{stopped.url}/gate", json=body, headers=headers)
        first = asyncio.ensure_future(call)
        await until_noted(service, (0, stopped.pid))
        await stop_outside_of_a_write(service, stopped)
        retry = asyncio.ensure_future(ask(other))
        await until_noted(service, (0, stopped.pid), (0, other.pid))
        service.open_gate()
        answer = await retry
        stopped.resume()
        late = await first
        again = await ask(stopped)

    assert answer.json() == late.json() == again.json() == [other.pid, other.pid]
    assert (late.status_code, late.headers["idempotent-replayed"]) == (200, "true")
    assert await service.effects() == {"r": 1}


async def test_its_open_transaction_is_rolled_back(tmp_path: Path, postgres_url: str) -> None:
    service = Service(tmp_path, postgres_url, lease=LEASE_SECONDS)
    with service.running() as (stopped, other):
        async with httpx.AsyncClient(timeout=60.0) as client:
            url = f"{stopped.url}/run/gated_in_transaction"
            call = asyncio.ensure_future(client.post(url, json={"name": "w"}))
            await until_noted(service, (0, stopped.pid), (1, stopped.pid))
            stopped.pause()
            await until_noted(service, (0, stopped.pid), (1, stopped.pid), (1, other.pid))
            service.open_gate()
            await until_finished(service)
            stopped.resume()
            answer = await call

        assert answer.json() == [stopped.pid, other.pid, other.pid]
        assert await service.query("SELECT name, pid FROM effects") == [("w", other.pid)]
