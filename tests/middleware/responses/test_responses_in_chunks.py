"""Responses whose bodies come in chunks: passed on in pauses, and recorded whole."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest
from support.asgi import Exchange, answer, answered, exchange, keyed
from support.executors import declared_dead, executor_of, is_another, until
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy

pytestmark = pytest.mark.anyio

SOON, NEVER = 0.0, 1000.0


def durable_at(url: str, stream_after: float = SOON, **settings: object) -> Durable:
    """Return an instance that passes chunks on after this many seconds."""
    policy = IdempotencyPolicy(stream_after=stream_after, **settings)
    return Durable(url, idempotency=policy, drain_timeout=0.0)


async def start(send, status: int = 200) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def piece(send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


class Pieces:
    """Responds with ``ab`` in two chunks, with a pause between them until its gate opens.

    Attributes:
        fails: The error that is raised after the pause.
    """

    def __init__(self) -> None:
        self.gate = Gate()
        self.calls = 0
        self.fails: Exception | None = None

    async def __call__(self, scope, receive, send) -> None:
        self.calls += 1
        await start(send)
        await piece(send, b"a")
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        await piece(send, b"b", more=False)


def begin(app, exchanged: Exchange, **more: object) -> asyncio.Task[None]:
    """Send a keyed request."""
    return asyncio.create_task(app(keyed(**more), exchanged.receive, exchanged.send))


async def test_a_chunk_before_a_pause_is_passed_on_and_a_retry_gets_the_whole(url: str) -> None:
    durable, app, exchanged = durable_at(url), Pieces(), Exchange(b"")
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await exchanged.answer_began.wait()
        before = exchanged.body
        app.gate.open()
        await call
        again = await exchange(wrapped, keyed())

    assert (before, exchanged.body, exchanged.is_complete) == (b"a", b"ab", True)
    assert exchanged.headers("idempotent-replayed") == []
    assert (again.body, app.calls) == (b"ab", 1)
    assert again.headers("content-length") == []


async def test_the_last_chunk_is_shown_only_once_the_whole_is_durable(
    url: str, tmp_path: Path
) -> None:
    durable, app, exchanged, seen = durable_at(url), Pieces(), Exchange(b""), []

    async def send(message) -> None:
        await exchanged.send(message)
        connection = sqlite3.connect(tmp_path / "test.db")
        (state,) = connection.execute("SELECT state FROM asgi_durable_workflows").fetchone()
        connection.close()
        seen.append((message.get("body"), state))

    async with durable:
        call = asyncio.create_task(durable.wrap(app)(keyed(), exchanged.receive, send))
        await exchanged.answer_began.wait()
        app.gate.open()
        await call

    assert seen == [(None, "PENDING"), (b"a", "PENDING"), (b"b", "SUCCESS")]


async def test_a_body_without_pauses_is_held_until_it_is_whole(url: str) -> None:
    durable, app, exchanged = durable_at(url, NEVER), Pieces(), Exchange(b"")
    async with durable:
        call = begin(durable.wrap(app), exchanged)
        await app.gate.reached.wait()
        held = list(exchanged.sent)
        app.gate.open()
        await call

    assert held == []
    assert [message["type"] for message in exchanged.sent] == [
        "http.response.start",
        "http.response.body",
    ]
    assert exchanged.body == b"ab"


@pytest.mark.parametrize("lets_others_run", [True, False])
async def test_chunks_without_a_pause_are_passed_on_in_the_end(
    url: str, *, lets_others_run: bool
) -> None:
    durable, exchanged, pieces = durable_at(url, 0.05), Exchange(b""), []

    async def serve(scope, receive, send) -> None:
        await start(send)
        while not exchanged.answer_began.is_set():
            pieces.append(b"x")
            await piece(send, b"x")
            if lets_others_run:
                await asyncio.sleep(0)
        await piece(send, b"end", more=False)

    wrapped = durable.wrap(serve)
    async with durable, asyncio.timeout(60):
        call = begin(wrapped, exchanged)
        await call
        again = await exchange(wrapped, keyed())

    assert exchanged.body == again.body == b"".join(pieces) + b"end"
    assert (exchanged.is_complete, again.headers("idempotent-replayed")) == (True, ["true"])


async def test_an_empty_chunk_passes_the_head_on(url: str) -> None:
    durable, gate, exchanged = durable_at(url), Gate(), Exchange(b"")

    async def serve(scope, receive, send) -> None:
        await start(send, 201)
        await piece(send, b"")
        await gate.wait()
        await piece(send, b"x")
        await send({"type": "http.response.body"})

    async with durable:
        call = begin(durable.wrap(serve), exchanged)
        await exchanged.answer_began.wait()
        before = (exchanged.status, exchanged.body)
        gate.open()
        await call

    assert before == (201, b"")
    assert (exchanged.body, exchanged.is_complete) == (b"x", True)


async def test_a_chunk_waits_for_the_one_that_is_on_its_way(url: str) -> None:
    durable, app, exchanged, slow = durable_at(url), Pieces(), Exchange(b""), Gate()

    async def send(message) -> None:
        if message.get("body") == b"a":
            await slow.wait()
        await exchanged.send(message)

    async with durable:
        call = asyncio.create_task(durable.wrap(app)(keyed(), exchanged.receive, send))
        await slow.reached.wait()
        app.gate.open()
        # As long as the client does not take the first chunk, the second one does not pass it.
        await asyncio.wait([call], timeout=0.1)
        waiting = exchanged.body
        slow.open()
        await call

    assert (waiting, exchanged.body, exchanged.is_complete) == (b"", b"ab", True)


@pytest.mark.parametrize("stream_after", [SOON, NEVER])
async def test_an_app_that_fails_in_the_middle_of_its_body_gets_another_attempt(
    url: str, stream_after: float
) -> None:
    durable, app, exchanged = durable_at(url, stream_after), Pieces(), Exchange(b"")
    app.fails = LookupError("in the middle")
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await (exchanged.answer_began if stream_after == SOON else app.gate.reached).wait()
        app.gate.open()
        with pytest.raises(LookupError):
            await call
        app.fails = None
        again = await exchange(wrapped, keyed())

    # A part is never taken for the whole: the server gets an error, and breaks the connection.
    assert exchanged.body == (b"a" if stream_after == SOON else b"")
    assert not any(message.get("more_body") is False for message in exchanged.sent)
    assert (again.body, again.headers("idempotent-replayed"), app.calls) == (b"ab", [], 2)


async def test_a_body_above_the_limit_is_passed_on_whole(url: str) -> None:
    durable, app, exchanged = durable_at(url, max_response_body=1), Pieces(), Exchange(b"")
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await exchanged.answer_began.wait()
        app.gate.open()
        await call
        again = await exchange(wrapped, keyed())

    assert (exchanged.body, exchanged.is_complete) == (b"ab", True)
    assert (again.status, app.calls) == (410, 1)


async def test_the_end_of_a_body_is_not_shown_if_the_whole_cannot_be_committed(
    url: str, tmp_path: Path
) -> None:
    policy = IdempotencyPolicy(stream_after=SOON)
    durable = Durable(f"{url}?busy_timeout=0.01", idempotency=policy, storage_patience=0.0)
    app, exchanged = Pieces(), Exchange(b"")
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await exchanged.answer_began.wait()
        lock = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        app.gate.open()
        await call
        lock.close()
        again = await exchange(wrapped, keyed())

    assert (exchanged.body, exchanged.is_complete) == (b"a", False)
    assert (again.status, again.body, app.calls) == (200, b"ab", 2)


async def test_a_body_that_was_begun_is_not_ended_with_another_executors(
    database_url: str,
) -> None:
    here, there = durable_at(database_url), durable_at(database_url)
    app, elsewhere, exchanged = Pieces(), Pieces(), Exchange(b"")
    elsewhere.gate.open()
    async with here, there:
        wrapped = here.wrap(app)
        call = begin(wrapped, exchanged)
        await exchanged.answer_began.wait()
        async with declared_dead(here):
            there_result = await exchange(there.wrap(elsewhere), keyed())
            app.gate.open()
            await call
        again = await until(lambda: answered(lambda: exchange(wrapped, keyed())))

    assert (exchanged.body, exchanged.is_complete) == (b"a", False)
    assert there_result.body == again.body == b"ab"
    assert again.headers("idempotent-replayed") == ["true"]
    assert (app.calls, elsewhere.calls) == (1, 1)


async def test_a_body_that_was_begun_is_not_begun_again(database_url: str) -> None:
    here, there = durable_at(database_url), durable_at(database_url)
    app, exchanged = Pieces(), Exchange(b"")
    async with here, there:
        old_id = executor_of(here).id
        call = begin(here.wrap(app), exchanged)
        await exchanged.answer_began.wait()
        async with declared_dead(here):
            pass
        await is_another(here, old_id)
        app.gate.open()
        await call
        again = await exchange(here.wrap(app), keyed())

    assert (exchanged.body, exchanged.is_complete) == (b"a", False)
    assert (again.body, app.calls) == (b"ab", 2)


async def test_nothing_is_passed_on_once_the_app_has_failed(url: str) -> None:
    durable, exchanged = durable_at(url, 0.02), Exchange(b"")

    async def serve(scope, receive, send) -> None:
        await start(send)
        await piece(send, b"a")
        raise LookupError

    async with durable:
        with pytest.raises(LookupError):
            await durable.wrap(serve)(keyed(), exchanged.receive, exchanged.send)
        await asyncio.sleep(0.1)

    assert exchanged.sent == []


class ServerError(Exception):
    """The error of a server about a message."""


@pytest.mark.parametrize("retry_here", [True, False])
async def test_an_error_of_the_server_about_a_chunk_reaches_app_and_server(
    url: str, retry_here: bool
) -> None:
    durable, app, refused, noticed = durable_at(url), Pieces(), asyncio.Event(), []

    async def send(message) -> None:
        refused.set()
        raise ServerError(message["type"])

    async def serve(scope, receive, send) -> None:
        if app.calls:
            await app(scope, receive, send)
            return
        app.calls += 1
        await start(send)
        await piece(send, b"a")
        await refused.wait()
        if retry_here:
            try:
                await piece(send, b"b", more=False)
            except ServerError:
                noticed.append("app")
                raise

    wrapped = durable.wrap(serve)
    app.gate.open()
    async with durable:
        with pytest.raises(ServerError):
            await wrapped(keyed(), Exchange(b"").receive, send)
        again = await exchange(wrapped, keyed())

    assert noticed == (["app"] if retry_here else [])
    assert (again.body, again.headers("idempotent-replayed")) == (b"ab", [])


async def test_a_refusal_of_the_library_is_one_chunk(url: str) -> None:
    durable, gate = durable_at(url), Gate()

    async def serve(scope, receive, send) -> None:
        await gate.wait()
        await answer(send)

    wrapped = durable.wrap(serve)
    async with durable:
        first = asyncio.create_task(exchange(wrapped, keyed()))
        await gate.reached.wait()
        duplicate = await exchange(wrapped, keyed(headers=[("Prefer", "wait=0")]))
        gate.open()
        await first

    assert (duplicate.is_complete, json.loads(duplicate.body)["status"]) == (True, 409)
