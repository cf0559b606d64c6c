"""Responses that come in chunks, through the whole stack, on the servers that people use."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import httpx
import pytest
from support.executors import until
from support.pieces import PIECES, PIECES_BEYOND_LIMIT, piece, whole
from support.processes.asgi_servers import ASGI_SERVERS, ASGIServer, skip_without

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 60.0
REQUESTS = [("GET", False), ("POST", False), ("POST", True)]
COMPLETE = [*(f"piece {number}" for number in range(PIECES)), "end"]
IS_TOLD = {"raw": "http.disconnect", "starlette": "cancelled"}


@pytest.fixture(scope="module", params=[*ASGI_SERVERS, "daphne"])
def server_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    skip_without(name)
    return name


@pytest.fixture(scope="module", params=["starlette", "raw"])
def app(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(
    server_name: str, app: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ASGIServer]:
    folder = tmp_path_factory.mktemp(f"{server_name}-{app}")
    with ASGIServer(
        server_name,
        folder,
        f"streaming_program:{app}",
        app_dir=Path(__file__).parent,
        environment={"ASGI_DURABLE_URL": f"sqlite:///{folder}/test.db"},
    ) as server:
        yield server


class Client:
    """A client of one streamed response, which also allows its chunks; all of them at the end.

    Args:
        http: Sends its requests.
        url: The server.
        method: The request's method.
        kind: The kind of response.
        has_key: True for a request with a key.
    """

    def __init__(
        self, http: httpx.AsyncClient, url: str, method: str, kind: str, *, has_key: bool
    ) -> None:
        name = uuid.uuid4().hex
        self._http = http
        self._request = (method, f"{url}/{kind}/{name}")
        self._headers = {"Idempotency-Key": name} if has_key else {}
        self._control_url = f"{url}/control/{name}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # A server that stops waits for its applications to end.
        await self.allow(PIECES)

    async def allow(self, pieces: int) -> None:
        """Allow this many chunks."""
        (await self._http.get(self._control_url, params={"allow": pieces})).raise_for_status()

    async def noted(self) -> list[str]:
        """Return what has happened in the app."""
        noted: list[str] = (await self._http.get(self._control_url)).json()
        return noted

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        """Send the request; yield the response's start, and its body as it comes."""
        sending = self._http.stream(*self._request, headers=self._headers)
        async with asyncio.timeout(TIMEOUT_SECONDS), sending as response:
            yield response, response.aiter_raw()

    async def send(self) -> httpx.Response:
        """Send the request, and read the whole response."""
        async with self.streaming() as (response, _):
            await response.aread()
            return response


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
        yield client


async def read_piece_by_piece(client: Client, kind: str, *, allowed: int) -> None:
    """Send the request; allow each chunk when the ones before have arrived, and no sooner.

    Args:
        client: Sends the request.
        kind: The kind of response.
        allowed: How many chunks are allowed at once, at first.
    """
    await client.allow(allowed)
    async with client.streaming() as (response, chunks):
        assert response.status_code == 200
        body = b""
        for pieces in range(allowed, PIECES + 1):
            await client.allow(pieces)
            while len(body) < len(whole(kind, pieces)):
                body += await anext(chunks)
            # No chunk was produced before it was allowed, and no false event was reported.
            if pieces < PIECES:
                assert await client.noted() == COMPLETE[:pieces]
        assert [chunk async for chunk in chunks] == []
    assert body == whole(kind)
    assert await client.noted() == COMPLETE


async def is_gone(client: Client) -> None:
    """Send the request again: it was carried out, and its response was not stored."""
    again = await client.send()
    problem = again.json()
    assert again.status_code == problem["status"] == 410
    assert (problem["code"], problem["original_status"]) == ("RESPONSE_NOT_KEPT", 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert await client.noted() == COMPLETE


@pytest.mark.parametrize(("method", "has_key"), REQUESTS)
async def test_each_event_arrives_before_the_next_one_is_produced(
    server: ASGIServer, http: httpx.AsyncClient, method: str, has_key: bool
) -> None:
    async with Client(http, server.url, method, "events", has_key=has_key) as client:
        await read_piece_by_piece(client, "events", allowed=1)

        if has_key:
            await is_gone(client)


@pytest.mark.parametrize(("method", "has_key"), REQUESTS)
async def test_an_answer_too_long_to_be_kept_arrives_whole_and_as_it_is_produced(
    server: ASGIServer, http: httpx.AsyncClient, method: str, has_key: bool
) -> None:
    async with Client(http, server.url, method, "download", has_key=has_key) as client:
        await read_piece_by_piece(client, "download", allowed=PIECES_BEYOND_LIMIT)

        if has_key:
            await is_gone(client)


async def test_with_a_key_an_event_stream_begins_before_its_first_event(
    server: ASGIServer, http: httpx.AsyncClient
) -> None:
    async with Client(http, server.url, "POST", "events", has_key=True) as client:
        async with client.streaming() as (response, chunks):
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["durable-id"]
            assert await client.noted() == []
            await client.allow(PIECES)
            assert b"".join([chunk async for chunk in chunks]) == whole("events")


@pytest.mark.parametrize(("method", "has_key"), REQUESTS)
async def test_a_client_that_has_really_gone_ends_its_stream(
    server: ASGIServer, app: str, http: httpx.AsyncClient, method: str, has_key: bool
) -> None:
    async with Client(http, server.url, method, "events", has_key=has_key) as client:
        await client.allow(1)
        async with client.streaming() as (_, chunks):
            assert await anext(chunks) == piece("events", 0)

        async def is_told() -> bool:
            return IS_TOLD[app] in await client.noted()

        await until(is_told)
