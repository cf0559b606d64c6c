"""A disk that is full for some seconds while steps are running, and has room again after."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.processes.counting import Service, post_anywhere, until

pytestmark = pytest.mark.anyio

OUTAGE_SECONDS = 2.0
# Shorter than the outage, and longer.
PATIENCES = [1.0, 30.0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for little more than an empty database."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def assert_that_a_full_disk_costs_time_only(
    service: Service, set_full: Callable[[httpx.AsyncClient, bool], Awaitable[None]]
) -> None:
    """Fill the disk while a request and a workflow are in a step; free it; see them finished."""
    (server,) = service.servers
    async with httpx.AsyncClient(timeout=60.0) as client:
        url, body = f"{server.url}/gate", {"name": "r"}
        (await client.post(f"{server.url}/start/gated", json={"name": "w"})).raise_for_status()
        call = client.post(url, json=body, headers={"Idempotency-Key": "r"})
        first = asyncio.ensure_future(call)

        async def are_waiting() -> bool:
            return len(service.ledger()) == 3

        await until(are_waiting)
        await set_full(client, True)
        service.open_gate()
        await asyncio.sleep(OUTAGE_SECONDS)
        await set_full(client, False)
        answer = await first
        again = await post_anywhere(client, [server.url], "/gate", key="r", json=body)

        async def are_finished() -> bool:
            return set((await service.states()).values()) == {"SUCCESS"}

        await until(are_finished)

    assert answer.status_code in {200, 503}, answer.text
    assert "retry-after" in answer.headers or answer.status_code == 200
    assert again.json() == [server.pid, server.pid]
    assert await service.effects() == {"r": 1, "w": 1}


@pytest.mark.parametrize("patience", PATIENCES)
async def test_work_that_met_files_that_cannot_grow_is_finished_without_a_restart(
    tmp_path: Path, sqlite_url: str, patience: float
) -> None:
    service = Service(tmp_path, sqlite_url, size=1, storage_patience=patience)

    async def set_full(client: httpx.AsyncClient, is_full: bool) -> None:
        body = {"bytes": 0 if is_full else None}
        (await client.post(f"{service.urls[0]}/limit", json=body)).raise_for_status()

    with service.running():
        await assert_that_a_full_disk_costs_time_only(service, set_full)


async def test_work_that_met_a_full_file_system_is_finished_without_a_restart(
    tmp_path: Path, small_disk: Path
) -> None:
    url = f"sqlite:///{small_disk}/test.db"
    service = Service(tmp_path, url, size=1, storage_patience=PATIENCES[0])

    async def set_full(_client: httpx.AsyncClient, is_full: bool) -> None:
        filler = small_disk / "filler"
        if is_full:
            fill(filler)
        else:
            filler.unlink()

    with service.running():
        await assert_that_a_full_disk_costs_time_only(service, set_full)


def fill(path: Path) -> None:
    """Write until there is no room for another byte."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2
    assert os.statvfs(path).f_bavail == 0
