"""A request whose process is killed continues in another one, without its client."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest
from support.executors import query, until
from support.processes.counting import post_anywhere
from support.processes.killed_services import places_of, served
from support.processes.server import Server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("a dead process is noticed when its lease ends"),
]

SENT = {
    "json": {"item": "book"},
    "headers": {"Authorization": "Bearer secret", "Cookie": "session=secret"},
}
KEY = "k"
STATES = "SELECT state, crashes FROM asgi_durable_workflows"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Service:
    """Processes on one database."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url

    async def kills(self, server: Server) -> None:
        """Send the request to a process that dies of it."""
        headers = {"Idempotency-Key": KEY, **SENT["headers"]}
        async with httpx.AsyncClient(timeout=60) as client:
            with pytest.raises(httpx.TransportError):
                await client.post(f"{server.url}/orders", json=SENT["json"], headers=headers)
        assert await asyncio.to_thread(server.wait) == -signal.SIGKILL

    async def is_answered(self) -> None:
        """Wait until the request has a response in the database."""

        async def done() -> bool:
            return [state for state, _ in await query(self._url, STATES)] == ["SUCCESS"]

        await until(done)

    async def retry(self, server: Server) -> httpx.Response:
        """Send the request again, as its client."""
        async with httpx.AsyncClient(timeout=60, headers=SENT["headers"]) as client:
            return await post_anywhere(client, [server.url], "/orders", key=KEY, json=SENT["json"])

    def places(self, process: str) -> list[str]:
        """Return which places a process has reached, in this order."""
        return places_of(self._folder / process)

    def process(
        self, name: str, kill_at: str = "", *, may_die: bool = False
    ) -> AbstractAsyncContextManager[Server]:
        """Serve, until the end of the block or a kill, which may come before it serves."""
        folder = self._folder / name
        return served(folder, "recovered_request_program", self._url, kill_at, may_die=may_die)


async def test_a_living_process_finishes_it_and_the_retry_is_told(tmp_path: Path, url: str) -> None:
    service = Service(tmp_path, url)

    async with service.process("second") as second:
        async with service.process("first", "step ship") as first:
            await service.kills(first)
            await service.is_answered()
        response = await service.retry(second)

    assert (response.status_code, response.headers["idempotent-replayed"]) == (201, "true")
    assert response.json() == {"shipment": "shipped what was reserved book", "place": "shop"}
    assert service.places("first") == ["step reserve", "step ship"]
    assert service.places("second") == ["step ship", "answer"]


async def test_each_process_that_it_kills_goes_on_where_the_one_before_was(
    tmp_path: Path, url: str
) -> None:
    service = Service(tmp_path, url)

    async with service.process("first", "step reserve") as first:
        await service.kills(first)
    for name, place in (("second", "step ship"), ("third", "answer")):
        async with service.process(name, place, may_die=True) as server:
            assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
    async with service.process("last") as last:
        await service.is_answered()
        response = await service.retry(last)

    assert response.headers["idempotent-replayed"] == "true"
    assert service.places("second") == ["step reserve", "step ship"]
    assert service.places("third") == ["step ship", "answer"]
    # The last step's record is committed with the response.
    assert service.places("last") == ["step ship", "answer"]


async def test_credentials_are_nowhere_in_the_database(tmp_path: Path, url: str) -> None:
    service = Service(tmp_path, url)

    async with service.process("first", "step ship") as first:
        await service.kills(first)

    rows = await query(url, "SELECT * FROM asgi_durable_workflows")
    rows += await query(url, "SELECT * FROM asgi_durable_steps")
    assert "book" in repr(rows)
    assert "secret" not in repr(rows)
