"""A Postgres that is away for longer than the storage's retry timeout."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from support.databases.postgres import PostgresServer
from support.processes.counting import Service, post_anywhere, show, until

pytestmark = [pytest.mark.anyio, pytest.mark.measures_time]

PATIENCE_SECONDS = 1.0
OUTAGE_SECONDS = 3.0
REQUESTS = 10
# How long a retry waits at most: the database is back, and the process is connected again.
LONGEST_RECOVERY_SECONDS = 10.0


async def test_callers_get_503_and_other_routes_are_served_and_the_same_keys_are_answered_after_it(
    tmp_path: Path, own_postgres: PostgresServer, own_postgres_url: str
) -> None:
    service = Service(tmp_path, own_postgres_url, size=1, storage_patience=PATIENCE_SECONDS)
    names = [f"r{number}" for number in range(REQUESTS)]
    with service.running() as (server,):
        async with httpx.AsyncClient(timeout=60.0) as client:

            async def ask(name: str) -> httpx.Response:
                headers = {"Idempotency-Key": name}
                url = f"{server.url}/{'gate' if name in names else 'steps'}"
                body = {"name": name} if name in names else {"name": name, "seconds": []}
                return await client.post(url, json=body, headers=headers)

            first = [asyncio.ensure_future(ask(name)) for name in names]

            async def have_begun() -> bool:
                return len(service.ledger()) == REQUESTS

            await until(have_begun)
            await asyncio.to_thread(own_postgres.stop)
            stopped_at = time.monotonic()
            service.open_gate()
            interrupted = await asyncio.gather(*first)
            new = await ask("new")
            plain = await client.get(f"{server.url}/plain")
            await asyncio.sleep(stopped_at + OUTAGE_SECONDS - time.monotonic())
            await asyncio.to_thread(own_postgres.start)
            started_at = time.monotonic()
            answers = [
                await post_anywhere(client, [server.url], "/gate", key=name, json={"name": name})
                for name in names
            ]
            seconds = time.monotonic() - started_at
            show("all are answered after the database is back", [seconds])

    assert plain.status_code == 200
    for answer in (*interrupted, new):
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) >= 1
    assert [answer.json() for answer in answers] == [[server.pid, server.pid]] * REQUESTS
    assert await service.effects() == dict.fromkeys(names, 1)
    assert seconds < LONGEST_RECOVERY_SECONDS
