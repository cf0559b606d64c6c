"""Keyed requests with bodies too long for the memory: passed on as they arrive, and compared."""

from __future__ import annotations

import asyncio
import json
import tempfile
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.asgi import Exchange, answer, answered, keyed, read_all
from support.executors import declared_dead, executor_of, is_another, kill, query, until
from support.interruption import Gate

from asgi_durable import Durable, DurableError, DurableUsageError, FinalError, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp, Message
from asgi_durable.middleware.fingerprints.fingerprint import request_fingerprint

pytestmark = pytest.mark.anyio

LIMIT = 1024
PIECE = b"x" * 700
LONG = [PIECE] * 5
OTHER = [*LONG[:-1], b"y"]
JSON = [("content-type", "application/json")]


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Sender(Exchange):
    """A client that sends its body in chunks, and may wait or disconnect before the last one.

    Attributes:
        asked: Number of chunks that the server has taken.
        gate: The gate that it waits at before a chunk; open at first.
        waits_with: Number of chunks that are left at the gate.
        leaves: True to disconnect at the gate.
    """

    def __init__(self, chunks: list[bytes] | None = None) -> None:
        super().__init__(chunks=LONG if chunks is None else chunks)
        self.asked = 0
        self.gate = Gate()
        self.gate.open()
        self.waits_with = 1
        self.leaves = False

    async def receive(self) -> Message:
        self.asked += 1
        if len(self._chunks) == self.waits_with:
            await self.gate.wait()
            if self.leaves:
                self._chunks.clear()
                self.disconnected.set()
        # As on a network, others run in between.
        await asyncio.sleep(0)
        return await super().receive()


class Upload:
    """An application that calls a step, takes a body, and calls another step with its length.

    Attributes:
        calls: How often it was called.
        ran: The steps that have run.
        fails: The error that it raises after the second step.
        reads: False to leave the body alone.
    """

    def __init__(self, url: str, *, framework: str = "asgi", **policy: Any) -> None:
        settings: dict[str, Any] = {"oversize": "hash", "max_request_body": LIMIT} | policy
        self.durable = durable = Durable(
            url, idempotency=IdempotencyPolicy(**settings), drain_timeout=0.0
        )
        self.calls = 0
        self.ran: list[str] = []
        self.fails: Exception | None = None
        self.reads = True
        routes = [Route("/", self._serve_starlette, methods=["POST"])]
        self.app: ASGIApp = durable.wrap(
            self._serve_asgi if framework == "asgi" else Starlette(routes=routes)
        )

        @durable.step(name="step", retry=None)
        async def step(name: str) -> str:
            self.ran.append(name)
            return name

        self.step = step

    async def post(
        self, chunks: list[bytes] | None = None, *, sender: Sender | None = None, **scope: Any
    ) -> Sender:
        """Send a request, in chunks."""
        sender = sender or Sender(chunks)
        await self.app(keyed(**scope), sender.receive, sender.send)
        return sender

    async def _serve_asgi(self, scope, receive, send) -> None:
        await answer(send, (await self._take(lambda: read_all(receive))).encode())

    async def _serve_starlette(self, request: Request) -> Response:
        return PlainTextResponse(await self._take(request.body))

    async def _take(self, read: Callable[[], Awaitable[bytes]]) -> str:
        self.calls += 1
        await self.step("begin")
        body = await read() if self.reads else b""
        await self.step(f"keep {len(body)}")
        if self.fails is not None:
            raise self.fails
        return f"{len(body)} in call {self.calls}"


@pytest.fixture(params=["asgi", "starlette"])
def upload(request: pytest.FixtureRequest, url: str) -> Upload:
    return Upload(url, framework=request.param)


def code_of(result: Exchange) -> str:
    code: str = json.loads(result.body)["code"]
    return code


async def fingerprints(url: str) -> list[str]:
    rows = await query(url, "SELECT fingerprint FROM asgi_durable_workflows")
    return [fingerprint for (fingerprint,) in rows]


async def attempts(url: str) -> list[int]:
    return [n for (n,) in await query(url, "SELECT attempts FROM asgi_durable_workflows")]


# Finished


async def test_a_long_body_is_taken_once_and_its_retry_gets_the_same_response(
    upload: Upload, url: str
) -> None:
    async with upload.durable:
        first, again = [await upload.post() for _ in range(2)]

    assert (first.status, first.body) == (again.status, again.body) == (200, b"3500 in call 1")
    assert first.headers("idempotent-replayed") == []
    assert again.headers("idempotent-replayed") == ["true"]
    assert upload.ran == ["begin", "keep 3500"]
    assert await fingerprints(url) == [request_fingerprint(keyed(), b"".join(LONG))]


async def test_another_long_body_is_another_request(upload: Upload) -> None:
    async with upload.durable:
        first = await upload.post()
        others = [await upload.post(one) for one in (OTHER, [b"short"], [*LONG, b"z"])]

    assert [(one.status, code_of(one)) for one in others] == [(422, "KEY_REUSED")] * 3
    assert all(first.body not in one.body for one in others)
    assert upload.calls == 1


async def test_how_a_body_is_cut_into_chunks_makes_no_difference(url: str) -> None:
    upload, whole = Upload(url), b"".join(LONG)
    announced = [("content-length", str(len(whole)))]
    async with upload.durable:
        first = await upload.post()
        again = [
            await upload.post([whole]),
            await upload.post([whole], headers=announced),
            await upload.post(headers=announced),
            await upload.post([whole[:LIMIT], whole[LIMIT:], b""]),
        ]

    assert [one.body for one in again] == [first.body] * 4
    assert upload.calls == 1


@pytest.mark.parametrize("oversize", ["reject", "hash"])
async def test_a_body_that_fits_is_compared_as_ever(url: str, oversize: str) -> None:
    upload = Upload(url, oversize=oversize)
    async with upload.durable:
        first = await upload.post([b'{"a": 1, "b": 2}'], headers=JSON)
        again = await upload.post([b'{"b":2,', b'"a":1}'], headers=JSON)

    assert (again.body, upload.calls) == (first.body, 1)
    assert await fingerprints(url) == [request_fingerprint(keyed(headers=JSON), b'{"a":1,"b":2}')]


async def test_a_long_body_is_refused_unless_wanted(url: str) -> None:
    upload = Upload(url, oversize="reject")
    async with upload.durable:
        refused = await upload.post()

    assert (refused.status, code_of(refused), upload.calls) == (413, "BODY_TOO_LARGE", 0)


async def test_memory_does_not_grow_with_the_body(url: str) -> None:
    upload, megabytes = Upload(url), 5
    piece = bytes(64 * 1024)
    count = megabytes * 16
    peaks = []

    async def serve(scope, receive, send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if upload.fails is not None:
            raise upload.fails
        await answer(send, str(size).encode())

    upload.app = upload.durable.wrap(serve)
    upload.fails = DurableError("once")
    async with upload.durable:
        # New, resumed from a file, answered, and refused.
        for _ in range(4):
            sender = Sender([])
            sender._chunks = [piece] * count
            tracemalloc.start()
            await upload.post(sender=sender)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            upload.fails = None
            count += len(peaks) == 3

    assert sender.status == 422
    assert await attempts(url) == [2]
    assert max(peaks) < 1024 * 1024


# Bodies that the app does not read to the end


@pytest.mark.parametrize("how", ["answers", "fails for good"])
async def test_what_the_app_leaves_of_a_body_is_compared_too(url: str, how: str) -> None:
    upload = Upload(url)
    upload.reads = False
    upload.fails = FinalError("no") if how == "fails for good" else None
    async with upload.durable:
        first, again, other = [await upload.post(one) for one in (LONG, LONG, OTHER)]

    assert (again.status, again.body) == (first.status, first.body)
    assert (other.status, upload.calls) == (422, 1)


async def test_the_rest_of_the_body_is_not_awaited_if_the_response_is_not_stored(url: str) -> None:
    upload, sender = Upload(url), Sender()
    upload.reads = False
    sender.gate = Gate()
    upload.fails = DurableError("not now", status_code=503)
    async with upload.durable:
        refused = await upload.post(sender=sender)
        upload.fails = None
        # Any body: that of the first attempt was never known.
        retry = await upload.post(OTHER)
        again, first = await upload.post(OTHER), await upload.post(LONG)

    assert (refused.status, sender.asked < len(LONG)) == (503, True)
    assert (retry.status, again.body, first.status) == (200, retry.body, 422)
    assert upload.ran == ["begin", "keep 0"]


async def test_the_last_attempt_compares_as_well(url: str) -> None:
    upload = Upload(url, max_attempts=1)
    upload.fails = DurableError("again and again")
    async with upload.durable:
        await upload.post()
        dead, again, other = [await upload.post(one) for one in (LONG, LONG, OTHER)]

    assert (code_of(dead), again.body, other.status) == ("ATTEMPTS_EXHAUSTED", dead.body, 422)


# Running


async def test_before_its_fingerprint_is_known_a_duplicate_is_to_come_back(url: str) -> None:
    here, there = Upload(url, max_wait=0.0), Upload(url, max_wait=0.0)
    sender = Sender()
    sender.gate = Gate()
    async with here.durable, there.durable:
        running = asyncio.create_task(here.post(sender=sender))
        await sender.gate.reached.wait()
        duplicates = [
            await one.post(body) for one in (here, there) for body in (LONG, OTHER, [b"s"])
        ]
        accepted = await there.post(LONG, headers=[("prefer", "respond-async")])
        states = await fingerprints(url)
        sender.gate.open()
        first = await running

    assert [(one.status, code_of(one)) for one in duplicates] == [(409, "IN_PROGRESS")] * 6
    # It is not known to be the same request: nothing is promised.
    assert accepted.status == 409
    assert len(states) == 1
    assert states[0].startswith("pending:")
    assert (first.body, here.calls, there.calls) == (b"3500 in call 1", 1, 0)


async def test_once_its_fingerprint_is_known_a_running_request_is_compared(url: str) -> None:
    here, there, gate = Upload(url), Upload(url), Gate()

    @here.durable.step(name="wait")
    async def wait() -> None:
        await gate.wait()

    async def serve(scope, receive, send) -> None:
        body = await read_all(receive)
        # It begins only when the fingerprint is durable.
        await wait()
        await answer(send, str(len(body)).encode())

    here.app = here.durable.wrap(serve)
    async with here.durable, there.durable:
        running = asyncio.create_task(here.post())
        await gate.reached.wait()
        others = [await one.post(OTHER) for one in (here, there)]
        duplicates = [asyncio.create_task(one.post()) for one in (here, there)]
        await until(lambda: all(is_waited_for(one.durable) for one in (here, there)))
        gate.open()
        answers = [await one for one in (running, *duplicates)]

    assert [one.status for one in others] == [422] * 2
    assert [one.body for one in answers] == [b"3500"] * 3
    assert there.calls == 0


def is_waited_for(durable: Durable) -> bool:
    running = durable.engine._running
    assert running is not None
    return running.requests._duplicates.total() > 0


async def test_a_duplicate_that_waited_for_the_fingerprint_is_compared_then(url: str) -> None:
    here, there, sender = Upload(url), Upload(url), Sender()
    sender.gate = Gate()
    async with here.durable, there.durable:
        running = asyncio.create_task(here.post(sender=sender))
        await sender.gate.reached.wait()
        bodies = [LONG, OTHER]
        duplicates = [asyncio.create_task(there.post(body)) for body in bodies]
        await until(lambda: is_waited_for(there.durable))
        sender.gate.open()
        first, same, other = [await one for one in (running, *duplicates)]

    assert (same.status, same.body, other.status) == (200, first.body, 422)
    assert (here.calls, there.calls) == (1, 0)


async def test_a_202_is_sent_only_once_the_body_is_complete(url: str) -> None:
    upload, sender, gate = Upload(url), Sender(), Gate()
    sender.gate = Gate()

    async def serve(scope, receive, send) -> None:
        body = await read_all(receive)
        await gate.wait()
        await answer(send, str(len(body)).encode())

    upload.app = upload.durable.wrap(serve)
    scope = keyed(headers=[("prefer", "respond-async")])
    async with upload.durable:
        call = asyncio.create_task(upload.app(scope, sender.receive, sender.send))
        await sender.gate.reached.wait()
        # It has every chance to get a response too early.
        await asyncio.wait([call], timeout=0.1)
        early = list(sender.sent)
        sender.gate.open()
        await call
        gate.open()
        replay = await until(lambda: answered(upload.post))

    assert (early, sender.status, replay.body) == ([], 202, b"3500")


# Interrupted


async def test_a_failed_request_continues_with_the_same_body_only(upload: Upload, url: str) -> None:
    upload.fails = DurableError("once", status_code=503)
    async with upload.durable:
        failed = await upload.post()
        other = await upload.post(OTHER)
        tried = await attempts(url)
        upload.fails = None
        retry = await upload.post()

    assert (failed.status, other.status, tried) == (503, 422, [1])
    assert (retry.body, upload.ran) == (b"3500 in call 2", ["begin", "keep 3500"])
    assert await attempts(url) == [2]


async def test_a_client_that_leaves_in_the_middle_may_come_back_with_any_body(
    upload: Upload, url: str
) -> None:
    sender = Sender()
    sender.leaves = True
    async with upload.durable:
        # The app gets the disconnect at once; the server logs the app's error, as ever.
        await asyncio.gather(upload.post(sender=sender), return_exceptions=True)
        retry = await upload.post(OTHER)
        again = await upload.post(OTHER)

    assert (retry.status, again.body) == (200, retry.body)
    # The result of a part of the body is not recorded: the retry has another one.
    assert upload.ran == ["begin", "keep 2801"]


async def test_a_client_that_leaves_what_the_app_left_is_not_taken_for_one_that_sent_it(
    url: str,
) -> None:
    upload, sender = Upload(url), Sender()
    upload.reads, sender.leaves = False, True
    async with upload.durable:
        await upload.post(sender=sender)
        state = await query(url, "SELECT state, executor_id FROM asgi_durable_workflows")
        retry = await upload.post(OTHER)

    assert state == [("PENDING", None)]
    assert (retry.body, upload.ran) == (b"0 in call 2", ["begin", "keep 0"])


async def test_a_client_that_leaves_in_the_middle_may_stop_the_work(url: str) -> None:
    upload, sender = Upload(url, on_disconnect="cancel"), Sender()
    cancelled = asyncio.Event()

    async def serve(scope, receive, send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    upload.app = upload.durable.wrap(serve)
    sender.leaves = True
    async with upload.durable:
        await upload.post(sender=sender)
        rows = await query(url, "SELECT state, executor_id FROM asgi_durable_workflows")

    assert cancelled.is_set()
    assert (sender.sent, rows) == ([], [("PENDING", None)])


async def test_the_client_of_a_long_body_may_still_stop_the_work_after_it(url: str) -> None:
    upload, sender, gate = Upload(url, on_disconnect="cancel"), Sender(), Gate()

    async def serve(scope, receive, send) -> None:
        body = await read_all(receive)
        await gate.wait()
        await answer(send, str(len(body)).encode())

    upload.app, sender.gate, sender.waits_with = upload.durable.wrap(serve), Gate(), 2
    async with upload.durable, asyncio.timeout(60):
        call = asyncio.create_task(upload.post(sender=sender))
        await sender.gate.reached.wait()
        # The task that watches the client has every chance to take a chunk of the body.
        await asyncio.wait([call], timeout=0.1)
        sender.gate.open()
        await gate.reached.wait()
        sender.disconnected.set()
        await call
        gate.open()
        retry = await upload.post()

    assert (sender.sent, retry.body) == ([], b"3500")


async def test_a_process_that_died_before_the_end_of_the_body_leaves_no_fingerprint(
    url: str,
) -> None:
    here, there, sender = Upload(url), Upload(url), Sender()
    sender.gate = Gate()
    async with there.durable:
        await here.durable.engine.start()
        call = asyncio.create_task(here.post(sender=sender))
        await sender.gate.reached.wait()
        await kill(here.durable)
        sender.gate.open()
        await asyncio.gather(call, return_exceptions=True)
        retry = await until(lambda: answered(lambda: there.post(OTHER)))
        again, first = await there.post(OTHER), await there.post(LONG)

    assert (retry.status, again.body, first.status) == (200, retry.body, 422)
    assert (here.ran, there.ran) == (["begin"], ["keep 2801"])


async def test_a_request_that_others_have_is_not_begun_again_without_its_body(url: str) -> None:
    here, there, sender = Upload(url), Upload(url), Sender()
    sender.gate = Gate()
    async with here.durable, there.durable:
        call = asyncio.create_task(here.post(sender=sender))
        await sender.gate.reached.wait()
        async with declared_dead(here.durable):
            new = await there.post(OTHER)
            sender.gate.open()
            late = await call
        again = await there.post(OTHER)

    assert (late.status, late.headers("retry-after")) == (503, ["1"])
    assert (new.status, again.body, await fingerprints(url)) == (
        200,
        new.body,
        [request_fingerprint(keyed(), b"".join(OTHER))],
    )


async def test_a_body_is_not_given_again_to_a_request_that_is_begun_again(url: str) -> None:
    here, there, gate = Upload(url), Upload(url), Gate()

    async def serve(scope, receive, send) -> None:
        body = await read_all(receive)
        here.calls += 1
        await gate.wait()
        await answer(send, str(len(body)).encode())

    here.app = here.durable.wrap(serve)
    async with here.durable, there.durable, asyncio.timeout(60):
        old_id = executor_of(here.durable).id
        call = asyncio.create_task(here.post())
        await gate.reached.wait()
        async with declared_dead(here.durable):
            pass
        await is_another(here.durable, old_id)
        gate.open()
        late = await call
        retry = await here.post()

    assert (late.status, late.headers("retry-after")) == (503, ["1"])
    assert (retry.body, here.calls) == (b"3500", 2)


# The file of a body


async def test_the_file_of_a_body_is_closed_whatever_becomes_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files, make = [], tempfile.TemporaryFile

    def note() -> Any:
        files.append(make(dir=tmp_path))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", note)
    upload, leaving = Upload(url), Sender()
    upload.fails, leaving.leaves = DurableError("once", status_code=503), True
    async with upload.durable:
        await upload.post()
        for body in (OTHER, LONG):
            await upload.post(body)
        await upload.post(sender=leaving)
        upload.fails = None
        await upload.post()
        await upload.post()

    assert [file.closed for file in files] == [True] * 4
    assert leaving.sent == []


@pytest.mark.parametrize("reads", [True, False])
async def test_a_response_that_expires_while_a_body_is_compared_is_not_made_without_the_body(
    url: str, *, reads: bool
) -> None:
    upload, sender = Upload(url, retention=1000.0), Sender()
    async with upload.durable, asyncio.timeout(60):
        first = await upload.post()
        upload.reads = reads
        sender.gate = Gate()
        call = asyncio.create_task(upload.post(sender=sender))
        await sender.gate.reached.wait()
        await query_write(url, "UPDATE asgi_durable_responses SET expires_at_us = 0")
        await query_write(url, "UPDATE asgi_durable_responses SET forgotten_at_us = 0")
        sender.gate.open()
        late = await call
        retry = await upload.post()

    size = 3500 if reads else 0
    assert (late.status, late.headers("retry-after")) == (503, ["1"])
    assert (first.body, retry.body) == (b"3500 in call 1", f"{size} in call 3".encode())


async def query_write(url: str, sql: str) -> None:
    """Change a row behind the library's back."""
    durable = Durable(url)

    @durable.transaction
    async def change() -> None:
        await durable.session.execute(sa.text(sql))

    async with durable:
        await change()


def test_a_fingerprint_of_ones_own_needs_the_whole_body() -> None:
    with pytest.raises(DurableUsageError, match="oversize"):
        IdempotencyPolicy(oversize="hash", fingerprint=lambda scope, body: "f")
