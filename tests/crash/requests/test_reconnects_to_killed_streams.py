"""The first reconnect to a recorded stream whose process was killed gets all that is missing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from support.processes.killed_services import NewURL, served
from support.processes.scripts import Client
from support.processes.server import Server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("a dead process is noticed when its lease ends"),
]

PROGRAM = "stream_kill_point_program"
SENT = {"about": "words"}
WITHOUT_LIFESPAN = ("--lifespan", "off")


async def part_of(server: Server) -> bytes:
    """Send the request to a process that dies; return the part of the response that came."""
    body = b""
    async with httpx.AsyncClient(timeout=60.0) as http:
        with pytest.raises(httpx.TransportError):
            async with http.stream(
                "POST", server.url, headers={"Idempotency-Key": "k"}, json=SENT
            ) as response:
                async for chunk in response.aiter_raw():
                    body += chunk
    assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
    return body


async def rest_of(server: Server, client: Client, *, tells: bool) -> Client:
    """Send the request again, once; return what the client has then."""
    headers = {"Idempotency-Key": "k"}
    if tells:
        assert client.seen is not None
        headers["Last-Event-ID"] = client.seen
    async with httpx.AsyncClient(timeout=60.0) as http:
        response = await http.post(server.url, headers=headers, json=SENT)
    assert response.status_code == 200, response.text
    return (client if tells else Client()).take(response.content)


@pytest.mark.parametrize("tells", [True, False], ids=["Last-Event-ID", "from the beginning"])
@pytest.mark.parametrize(
    ("is_up_before", "arguments"),
    [(True, ()), (False, ()), (False, WITHOUT_LIFESPAN)],
    ids=["of another process", "of a restarted one", "of one without a lifespan"],
)
async def test_the_first_reconnect_gets_the_rest(
    tmp_path: Path, new_url: NewURL, is_up_before: bool, arguments: Sequence[str], tells: bool
) -> None:
    url = new_url(tmp_path)
    other = served(tmp_path / "other", PROGRAM, url, arguments=arguments, VOICE="high ")
    async with AsyncExitStack() as servers:
        if is_up_before:
            server = await servers.enter_async_context(other)
        async with served(tmp_path / "killed", PROGRAM, url, "step 1", VOICE="low ") as killed:
            seen = Client().take(await part_of(killed))
        if not is_up_before:
            server = await servers.enter_async_context(other)
        assert seen.names == "one,"
        client = await rest_of(server, seen, tells=tells)

    assert client.names == "one,high two,high three,"
