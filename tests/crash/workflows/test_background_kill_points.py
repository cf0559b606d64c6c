"""A process that is killed at the commit of a response that starts a workflow."""

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

SENT = {"json": {"item": "book"}}
KEY = "k"
NOTIFIED = "notified of book"
# The claim, the place in the log, and the last step with the end and what that starts.
END = "commit 3: RecordStep FinishWorkflow"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Service:
    """Processes on one database, one after the other."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url

    async def is_killed(self, place: str) -> None:
        """Send the request to a process that dies at this place, before it has answered."""
        async with self.process("killed", place) as server, httpx.AsyncClient(timeout=60) as client:
            with pytest.raises(httpx.TransportError):
                await client.post(f"{server.url}/orders", headers={"Idempotency-Key": KEY}, **SENT)
            assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
        assert self.places("killed")[-1] == place

    async def retry(self, server: Server) -> httpx.Response:
        """Send the request again until it is answered."""
        async with httpx.AsyncClient(timeout=60) as client:
            return await post_anywhere(client, [server.url], "/orders", key=KEY, **SENT)

    async def started(self) -> list[str]:
        """Return the states of what is started in the background."""
        statement = "SELECT state FROM asgi_durable_workflows WHERE name = 'notify'"
        return [state for (state,) in await query(self._url, statement)]

    async def is_done(self) -> None:
        """Wait until what is started has ended."""

        async def done() -> bool:
            return await self.started() == ["SUCCESS"]

        await until(done)

    def places(self, process: str) -> list[str]:
        """Return which places a process has reached, in this order."""
        return places_of(self._folder / process)

    def process(self, name: str, kill_at: str = "") -> AbstractAsyncContextManager[Server]:
        """Serve, until the end of the block or a kill."""
        return served(self._folder / name, "background_program", self._url, kill_at)


async def test_a_kill_before_the_answer_is_durable_starts_nothing_until_the_retry(
    tmp_path: Path, url: str
) -> None:
    service = Service(tmp_path, url)
    await service.is_killed(f"before {END}")
    assert await service.started() == []

    async with service.process("answers") as server:
        response = await service.retry(server)
        await service.is_done()

    assert response.status_code == 201
    assert "idempotent-replayed" not in response.headers
    assert service.places("answers").count(NOTIFIED) == 1


async def test_a_kill_after_the_answer_is_durable_loses_nothing_and_needs_no_retry(
    tmp_path: Path, url: str
) -> None:
    service = Service(tmp_path, url)
    await service.is_killed(f"after {END}")
    assert await service.started() == ["PENDING"]

    async with service.process("answers") as server:
        await service.is_done()
        response = await service.retry(server)

    assert (response.status_code, response.headers["idempotent-replayed"]) == (201, "true")
    places = [*service.places("killed"), *service.places("answers")]
    assert places.count(NOTIFIED) == 1
