"""The same keyed request many times at once, over two processes: it is carried out once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from support.processes.counting import Service, post_anywhere, until

pytestmark = pytest.mark.anyio

TWINS = 200


async def test_200_duplicates_over_two_processes_are_one_execution(
    tmp_path: Path, database_url: str
) -> None:
    service = Service(tmp_path, database_url, size=2)
    limits = httpx.Limits(max_connections=None)
    with service.running():
        async with httpx.AsyncClient(timeout=60.0, limits=limits) as client:

            async def ask(number: int) -> httpx.Response:
                first = number % 2
                urls = [service.urls[first], service.urls[1 - first]]
                return await post_anywhere(client, urls, "/gate", key="k", json={"name": "n"})

            async def has_begun() -> bool:
                return bool(service.ledger())

            asking = asyncio.gather(*(ask(number) for number in range(TWINS)))
            await until(has_begun)
            service.open_gate()
            answers = await asking

    assert {(answer.status_code, answer.content) for answer in answers} == {
        (200, answers[0].content)
    }
    assert await service.effects() == {"n": 1}
    steps = [entry.step for entry in service.ledger()]
    assert steps == [0, 1]
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert replayed.count("true") == TWINS - 1
