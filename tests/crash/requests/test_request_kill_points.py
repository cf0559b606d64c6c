"""A keyed request whose process is killed at every commit: its retry is answered as if not."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.executors import query
from support.processes.counting import post_anywhere
from support.processes.killed_services import NewURL, places_of, served
from support.processes.server import Server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("a dead process is noticed when its lease ends"),
]

ORDER = ("/orders", {"json": {"item": "book"}})
# Longer than the part of a body that is stored.
UPLOAD = ("/uploads", {"content": b"0123456789abcdef" * 320 * 1024})
SALE = ("/sales", {"json": {"item": "book"}})
KEY = "k"
# The claim, the first step, the transaction, and the last step with the end.
FEWEST_COMMITS = 4
AT_ONCE = 4
# Headers about the moment, the attempt, or the database (each has its own secret for ids), and
# not about the request.
FRESH_HEADERS = frozenset({b"date", b"durable-id", b"idempotent-replayed", b"x-request-id"})

# A path, and what is sent there, as a client takes it.
Sent = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """A response, without the headers that differ in every response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @classmethod
    def of(cls, response: httpx.Response) -> Answer:
        """Return the lasting parts of a response; lines of one header stay in order."""
        lines = [(name.lower(), value) for name, value in response.headers.raw]
        kept = [line for line in lines if line[0] not in FRESH_HEADERS]
        return cls(response.status_code, sorted(kept, key=lambda line: line[0]), response.content)


@dataclass(frozen=True)
class Ended:
    """How a request has ended, whatever happened to its processes.

    Attributes:
        answer: The response that its client got.
        rows: The rows of its transaction.
        repeated: The steps that were recorded, and ran again.
    """

    answer: Answer
    rows: list[tuple[str]]
    repeated: set[str]


class Case:
    """One request, its database, and the processes that serve it one after the other."""

    def __init__(self, folder: Path, new_url: NewURL, sent: Sent) -> None:
        folder.mkdir()
        self._path, self._sent = sent
        self._folder = folder
        self._url = new_url(folder)

    async def is_killed(self, place: str) -> None:
        """Send the request to a process that dies at this place, before it has answered."""
        async with (
            self._server("killed", place) as server,
            httpx.AsyncClient(timeout=60.0) as client,
        ):
            with pytest.raises(httpx.TransportError):
                headers = {"Idempotency-Key": KEY}
                await client.post(f"{server.url}{self._path}", headers=headers, **self._sent)
            assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
        assert self.places("killed")[-1] == place

    async def is_answered(self) -> Ended:
        """Send the request to a fresh process until it is answered."""
        recorded = await self._recorded_steps()
        async with self._server("answers") as server, httpx.AsyncClient(timeout=60.0) as client:
            response = await post_anywhere(client, [server.url], self._path, key=KEY, **self._sent)
        rows = await query(self._url, "SELECT item FROM effects")
        return Ended(Answer.of(response), rows, recorded & {*self.places("answers")})

    def places(self, process: str) -> list[str]:
        """Return which places a process has reached, in this order."""
        return places_of(self._folder / process)

    def _server(self, name: str, kill_at: str = "") -> AbstractAsyncContextManager[Server]:
        return served(self._folder / name, "request_kill_point_program", self._url, kill_at)

    async def _recorded_steps(self) -> set[str]:
        if not (self._folder / "killed").exists():
            return set()
        rows = await query(self._url, "SELECT name FROM asgi_durable_steps")
        return {f"step {name}" for (name,) in rows}


async def test_a_kill_before_or_after_any_commit_changes_neither_answer_nor_effects(
    tmp_path: Path, new_url: NewURL
) -> None:
    undisturbed = Case(tmp_path / "undisturbed", new_url, ORDER)
    expected = await undisturbed.is_answered()
    places = [place for place in undisturbed.places("answers") if " commit " in place]
    ended = await ended_after_kills(tmp_path, new_url, ORDER, places)

    assert len(places) >= 2 * FEWEST_COMMITS, places
    assert expected.answer.status == 201
    assert expected.rows == [("book",)]
    assert ended == dict.fromkeys(places, expected)


async def test_a_kill_anywhere_in_a_single_transaction_changes_neither_answer_nor_effects(
    tmp_path: Path, new_url: NewURL
) -> None:
    undisturbed = Case(tmp_path / "undisturbed", new_url, SALE)
    expected = await undisturbed.is_answered()
    places = undisturbed.places("answers")
    ended = await ended_after_kills(tmp_path, new_url, SALE, places)

    assert [place for place in places if " commit " in place] == [
        "before commit 1: request",
        "after commit 1: request",
    ]
    assert (expected.answer.status, expected.rows) == (201, [("book",)])
    assert ended == dict.fromkeys(places, expected)


async def test_a_kill_while_a_long_body_arrives_or_later_changes_neither_answer_nor_effects(
    tmp_path: Path, new_url: NewURL
) -> None:
    undisturbed = Case(tmp_path / "undisturbed", new_url, UPLOAD)
    expected = await undisturbed.is_answered()
    reached = undisturbed.places("answers")
    places = [place for place in reached if " commit " in place or place.endswith("of the body")]
    ended = await ended_after_kills(tmp_path, new_url, UPLOAD, places)

    assert any("SetFingerprint" in place for place in places), places
    # The claim, the first step, the fingerprint, the transaction, the last step with the end.
    assert len(places) >= 2 * (FEWEST_COMMITS + 1) + 1, places
    assert (expected.answer.status, len(expected.rows)) == (201, 1)
    assert ended == dict.fromkeys(places, expected)


async def ended_after_kills(
    folder: Path, new_url: NewURL, sent: Sent, places: list[str]
) -> dict[str, Ended]:
    """Kill the process of a request at each place, and return how the request has ended."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def ended_after_kill(number: int, place: str) -> Ended:
        case = Case(folder / f"{number}", new_url, sent)
        async with at_once:
            await case.is_killed(place)
            return await case.is_answered()

    kills = [ended_after_kill(number, place) for number, place in enumerate(places)]
    return dict(zip(places, await asyncio.gather(*kills), strict=True))
