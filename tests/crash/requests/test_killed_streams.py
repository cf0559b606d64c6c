"""A recorded stream whose process is killed at every commit: one response."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest
from support.processes.counting import post_anywhere
from support.processes.killed_services import NewURL, places_of, served
from support.processes.scripts import Client
from support.processes.server import Server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("a dead process is noticed when its lease ends"),
]

SENT = {"about": "words"}
KEY = {"Idempotency-Key": "k"}
AT_ONCE = 4
# The claim, the start, an event and a step twice, the last event, the end.
FEWEST_COMMITS = 6


def program(
    folder: Path, url: str, voice: str, kill_at: str
) -> AbstractAsyncContextManager[Server]:
    return served(folder, "stream_kill_point_program", url, kill_at, VOICE=voice)


async def until_killed(url: str) -> bytes:
    """Send the request to a process that dies; return the part of the response that came."""
    body = b""
    async with httpx.AsyncClient(timeout=60.0) as client:
        with pytest.raises(httpx.TransportError):
            async with client.stream("POST", url, headers=KEY, json=SENT) as response:
                async for chunk in response.aiter_raw():
                    body += chunk
    return body


async def ended_after_kill(folder: Path, url: str, place: str) -> tuple[str, str, list[str]]:
    """Return what the client has in the end, what another one gets, and which steps ran again."""
    client = Client()
    async with program(folder / "killed", url, "low ", place) as server:
        client.take(await until_killed(server.url))
        assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
    assert places_of(folder / "killed")[-1] == place
    seen = {"Last-Event-ID": client.seen} if client.seen is not None else {}
    async with (
        program(folder / "answers", url, "high ", "nowhere") as server,
        httpx.AsyncClient(timeout=60.0, headers=seen) as http,
    ):
        again = await post_anywhere(http, [server.url], "/", key="k", json=SENT)
        http.headers.pop("Last-Event-ID", None)
        other = await http.post(server.url, headers=KEY, json=SENT)
    assert other.headers["idempotent-replayed"] == "true"
    steps = [place for place in places_of(folder / "answers") if place.startswith("step")]
    return client.take(again.content).names, Client().take(other.content).names, steps


async def test_a_kill_before_or_after_any_commit_leaves_one_answer(
    tmp_path: Path, new_url: NewURL
) -> None:
    undisturbed = tmp_path / "undisturbed"
    async with (
        program(undisturbed, new_url(tmp_path), "low ", "nowhere") as server,
        httpx.AsyncClient(timeout=60.0) as http,
    ):
        await post_anywhere(http, [server.url], "/", key="k", json=SENT)
    found = [place for place in places_of(undisturbed) if " commit " in place]
    at_once = asyncio.Semaphore(AT_ONCE)

    async def ended(number: int, place: str) -> tuple[str, str, list[str]]:
        folder = tmp_path / f"{number}"
        await asyncio.to_thread(folder.mkdir)
        async with at_once:
            return await ended_after_kill(folder, new_url(folder), place)

    ends = await asyncio.gather(*(ended(number, place) for number, place in enumerate(found)))

    assert len(found) >= 2 * FEWEST_COMMITS, found
    low, high = "one,low two,low three,", "one,high two,high three,"
    for place, (client, other, steps) in zip(found, ends, strict=True):
        assert client == other, place
        assert client == (low if place == found[-1] else high), place
        assert len(steps) == len(set(steps)), place
    assert (len(ends[0][2]), len(ends[-1][2])) == (3, 0)
