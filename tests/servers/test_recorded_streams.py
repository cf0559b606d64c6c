"""Streams that are recorded, through the whole stack, on the servers that people use."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from support.executors import until
from support.pieces import PIECES, whole
from support.processes.asgi_servers import ASGI_SERVERS, ASGIServer

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 60.0
# As many chunks as are sent at once, where only long responses are streamed.
BEGUN = {"events": 1, "download": 6}


@pytest.fixture(scope="module", params=ASGI_SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ASGIServer]:
    folder = tmp_path_factory.mktemp(request.param)
    with ASGIServer(
        request.param,
        folder,
        "streaming_program:recorded",
        app_dir=Path(__file__).parent,
        environment={"ASGI_DURABLE_URL": f"sqlite:///{folder}/test.db"},
    ) as server:
        yield server


class Answers:
    """The responses to one request, however often it is sent."""

    def __init__(self, http: httpx.AsyncClient, url: str, kind: str, stack: AsyncExitStack) -> None:
        self._http = http
        self._stack = stack
        self._name = uuid.uuid4().hex
        self._url = f"{url}/{kind}/{self._name}"
        self._control_url = f"{url}/control/{self._name}"

    async def control(self, what: str = "") -> list[str]:
        """Allow chunks, or let the app fail; return the app's events."""
        answer = await self._http.get(f"{self._control_url}?{what}")
        noted: list[str] = answer.json()
        return noted

    async def send(self) -> tuple[httpx.Response, AsyncIterator[bytes]]:
        """Send the request; yield the response's start, and its body as it comes."""
        sending = self._http.stream("POST", self._url, headers={"Idempotency-Key": self._name})
        response = await self._stack.enter_async_context(sending)
        return response, response.aiter_raw()


@pytest.fixture(params=BEGUN)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
async def answers(server: ASGIServer, kind: str) -> AsyncIterator[Answers]:
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as http,
        AsyncExitStack() as stack,
    ):
        yield Answers(http, server.url, kind, stack)


async def read(chunks: AsyncIterator[bytes], expected: bytes) -> None:
    """Read a beginning, and no more than that."""
    body = b""
    while len(body) < len(expected):
        body += await anext(chunks)
    assert body == expected


async def rest(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def test_duplicates_follow_and_a_retry_gets_the_whole(answers: Answers, kind: str) -> None:
    begun = whole(kind, BEGUN[kind])
    await answers.control(f"allow={BEGUN[kind]}")
    first, chunks = await answers.send()
    await read(chunks, begun)
    duplicate, chunks_of_duplicate = await answers.send()
    await read(chunks_of_duplicate, begun)
    await answers.control(f"allow={PIECES}")

    assert begun + await rest(chunks) == begun + await rest(chunks_of_duplicate) == whole(kind)
    again, chunks_again = await answers.send()
    assert await rest(chunks_again) == whole(kind)
    replayed = [each.headers.get("idempotent-replayed") for each in (first, duplicate, again)]
    assert replayed == [None, "true", "true"]
    assert (await answers.control()).count("piece 0") == 1


async def test_a_client_that_has_gone_does_not_end_its_stream(answers: Answers, kind: str) -> None:
    await answers.control(f"allow={BEGUN[kind]}")
    first, chunks = await answers.send()
    await read(chunks, whole(kind, BEGUN[kind]))
    await first.aclose()
    await answers.control(f"allow={PIECES}")

    async def has_ended() -> bool:
        return "end" in await answers.control()

    await until(has_ended)
    _, chunks = await answers.send()
    assert await rest(chunks) == whole(kind)
    assert [noted for noted in await answers.control() if "piece" not in noted] == ["end"]


async def test_who_follows_an_app_that_fails_sees_that_the_answer_is_not_whole(
    answers: Answers, kind: str
) -> None:
    begun = whole(kind, BEGUN[kind])
    await answers.control(f"allow={BEGUN[kind]}")
    _, chunks = await answers.send()
    await read(chunks, begun)
    _, chunks_of_duplicate = await answers.send()
    await read(chunks_of_duplicate, begun)
    await answers.control("fail")

    for left in (chunks, chunks_of_duplicate):
        with pytest.raises(httpx.RemoteProtocolError):
            await rest(left)
    await answers.control(f"allow={PIECES}")
    _, chunks = await answers.send()
    assert await rest(chunks) == whole(kind)
