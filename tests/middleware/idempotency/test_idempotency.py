"""Keyed requests on a raw ASGI app: claim, response, replay, resume."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Exchange, answer, exchange, http_scope, keyed, read_all
from support.executors import until

from asgi_durable import (
    Durable,
    DurableError,
    IdempotencyPolicy,
    NonDeterministicWorkflowError,
    StorageUnavailableError,
)
from asgi_durable.middleware.asgi import Receive, Scope, Send

pytestmark = pytest.mark.anyio

Handle = Callable[[Scope, Receive, Send], Awaitable[None]]


class App:
    """Counts its calls and responds with their number, or as a test wants it."""

    def __init__(self, handle: Handle | None = None) -> None:
        self.calls = 0
        self._handle = handle

    async def __call__(self, scope, receive, send) -> None:
        self.calls += 1
        if self._handle is not None:
            await self._handle(scope, receive, send)
        else:
            await answer(send, f"call {self.calls}".encode())


def problem(result: Exchange) -> dict[str, object]:
    assert result.headers("content-type") == ["application/problem+json"]
    return json.loads(result.body)


async def test_a_retry_gets_the_same_response_byte_for_byte(durable: Durable) -> None:
    body = bytes(range(256))
    headers = [
        (b"Content-Type", b"application/octet-stream"),
        (b"Location", b"/things/1"),
        (b"Link", b"</a>; rel=a"),
        (b"Link", b"</b>; rel=b"),
        (b"Set-Cookie", b"session=secret"),
        (b"Date", b"now"),
        (b"Content-Length", b"256"),
    ]

    async def handle(scope, receive, send) -> None:
        await answer(send, body, status=201, headers=headers)

    app = App(handle)
    wrapped = durable.wrap(app)
    first = await exchange(wrapped, keyed(), b"{}")
    again = await exchange(wrapped, keyed('"k"'), b"{}")

    assert app.calls == 1
    assert (first.status, first.body) == (again.status, again.body) == (201, body)
    assert first.headers("idempotent-replayed") == []
    assert again.headers("idempotent-replayed") == ["true"]
    for name in ("content-type", "location", "link", "content-length", "durable-id"):
        assert first.headers(name) == again.headers(name) != []
    assert again.headers("idempotency-key") == ['"k"']
    assert (first.headers("set-cookie"), again.headers("set-cookie")) == (["session=secret"], [])
    assert again.headers("date") == []
    assert first.is_complete
    assert again.is_complete


@pytest.mark.parametrize("media_type", [b"text/plain", b"text/event-stream"])
async def test_cookies_are_replayed_where_that_is_wanted(
    database_url: str, media_type: bytes
) -> None:
    policy = IdempotencyPolicy(keep_cookies=True, stream="record")
    durable = Durable(database_url, idempotency=policy)
    headers = [(b"content-type", media_type), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]

    async def handle(scope, receive, send) -> None:
        await answer(send, b"data: x\n\n", headers=headers)

    app = App(handle)
    wrapped = durable.wrap(app)
    async with durable:
        answers = [await exchange(wrapped, keyed(), b"{}") for _ in range(2)]

    assert [one.headers("set-cookie") for one in answers] == [["a=1", "b=2"]] * 2
    assert answers[1].headers("idempotent-replayed") == ["true"]
    assert app.calls == 1


async def test_the_response_is_there_after_a_restart(url: str) -> None:
    app = App()
    durable = Durable(url)
    wrapped = durable.wrap(app)

    async with durable:
        await exchange(wrapped, keyed(), b"{}")
    async with durable:
        again = await exchange(wrapped, keyed(), b"{}")

    assert (again.body, app.calls) == (b"call 1", 1)


async def test_the_app_reads_the_body_as_it_was_sent(durable: Durable) -> None:
    async def handle(scope, receive, send) -> None:
        await answer(send, await read_all(receive))

    result = await exchange(durable.wrap(App(handle)), keyed(), chunks=[b"a", b"", b"bc", b""])

    assert result.body == b"abc"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_a_method_that_is_not_covered_ignores_the_key(durable: Durable, method: str) -> None:
    app = App()
    scope = http_scope(method, headers=[("Idempotency-Key", "k")])

    for _ in range(2):
        result = await exchange(durable.wrap(app), scope)
        assert result.headers("durable-id") == []

    assert app.calls == 2


async def test_a_request_without_a_key_passes_untouched(durable: Durable) -> None:
    app = App()
    seen: list[object] = []

    async def handle(scope, receive, send) -> None:
        seen.append((scope, durable.workflow_id))
        await answer(send)

    scope = http_scope("POST")
    await exchange(durable.wrap(App(handle)), scope, b"x")

    assert seen == [(scope, None)]
    assert app.calls == 0


@pytest.mark.parametrize(
    "other",
    [
        (keyed(), b"other body"),
        (keyed(path="/other"), b"{}"),
        (keyed(query_string=b"a=1"), b"{}"),
        (keyed(method="PATCH"), b"{}"),
    ],
    ids=["body", "path", "query", "method"],
)
async def test_the_key_of_another_request_is_a_422_that_hints_at_nothing(
    durable: Durable, other
) -> None:
    app = App()
    wrapped = durable.wrap(app)
    await exchange(wrapped, keyed(), b"{}")

    scope, body = other
    result = await exchange(wrapped, scope, body)

    assert (result.status, app.calls) == (422, 1)
    assert problem(result)["code"] == "KEY_REUSED"
    assert b"call 1" not in result.body


async def test_another_principal_is_another_request(durable: Durable) -> None:
    app = App()
    wrapped = durable.wrap(app)
    alice, bob = (keyed(headers=[("authorization", f"Bearer {who}")]) for who in ("a", "b"))

    bodies = [
        (await exchange(wrapped, scope, b"{}")).body for scope in (alice, bob, alice, keyed())
    ]

    assert bodies == [b"call 1", b"call 2", b"call 1", b"call 3"]


async def test_a_malformed_key_is_a_400_and_nothing_runs(durable: Durable) -> None:
    app = App()

    result = await exchange(durable.wrap(app), keyed("a,b"), b"{}")

    assert (result.status, app.calls) == (400, 0)
    assert problem(result)["code"] == "KEY_MALFORMED"


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_a_413_and_nothing_runs(url: str, announced: bool) -> None:
    app = App()
    policy = IdempotencyPolicy(max_request_body=10)
    headers = [("content-length", "11")] if announced else []

    async with Durable(url, idempotency=policy) as durable:
        wrapped = durable.wrap(app)
        refused = await exchange(wrapped, keyed(headers=headers), chunks=[b"x" * 6, b"x" * 5])
        taken = await exchange(wrapped, keyed(), b"x" * 10)

    assert (refused.status, taken.status, app.calls) == (413, 200, 1)
    assert problem(refused)["code"] == "BODY_TOO_LARGE"


async def test_a_client_that_leaves_before_its_body_is_complete_leaves_nothing(
    durable: Durable, tmp_path: Path
) -> None:
    app = App()
    exchanged = Exchange(chunks=[b"half"])
    exchanged._chunks.append(b"")
    exchanged.disconnected.set()

    async def receive():
        message = await exchanged.receive()
        exchanged._chunks.clear()
        return message

    await durable.wrap(app)(keyed(), receive, exchanged.send)

    assert (exchanged.sent, app.calls) == ([], 0)
    connection = sqlite3.connect(tmp_path / "test.db")
    assert connection.execute("SELECT count(*) FROM asgi_durable_workflows").fetchone() == (0,)
    connection.close()


async def test_a_duplicate_of_a_running_request_is_asked_to_come_back(durable: Durable) -> None:
    may_end, begun = asyncio.Event(), asyncio.Event()

    async def handle(scope, receive, send) -> None:
        begun.set()
        await may_end.wait()
        await answer(send, b"done")

    app = App(handle)
    wrapped = durable.wrap(app)
    first = asyncio.ensure_future(exchange(wrapped, keyed(), b"{}"))
    await begun.wait()
    duplicate = await exchange(wrapped, keyed(headers=[("Prefer", "wait=0")]), b"{}")
    other = await exchange(wrapped, keyed(), b"other")
    may_end.set()

    assert (duplicate.status, duplicate.headers("retry-after")) == (409, ["1"])
    assert problem(duplicate)["code"] == "IN_PROGRESS"
    assert problem(duplicate)["retryable"] is True
    assert other.status == 422
    assert (await first).body == b"done"
    assert (await exchange(wrapped, keyed(), b"{}")).body == b"done"
    assert app.calls == 1


async def test_many_duplicates_at_once_are_one_execution(durable: Durable) -> None:
    app = App()
    wrapped = durable.wrap(app)

    results = await asyncio.gather(*(exchange(wrapped, keyed(), b"{}") for _ in range(50)))

    assert app.calls == 1
    assert {(r.status, r.body) for r in results} == {(200, b"call 1")}


async def test_many_replays_at_once_all_get_a_response(durable: Durable) -> None:
    wrapped = durable.wrap(App())
    await exchange(wrapped, keyed(), b"{}")

    results = await asyncio.gather(*(exchange(wrapped, keyed(), b"{}") for _ in range(50)))

    assert [(r.status, r.body) for r in results] == [(200, b"call 1")] * 50


def failing(durable: Durable, runs: list[str], *, times: int, how: str) -> Handle:
    """Return a handler with a step, a transaction-like child and a failure at its end."""

    @durable.step
    async def step(name: str) -> str:
        runs.append(name)
        return name

    @durable.workflow
    async def child() -> str:
        value = await step("in the child")
        if runs.count("in the handler") and how == "child" and times >= runs.count("tried"):
            runs.append("child fails")
            raise LookupError("child")
        return value

    async def handle(scope, receive, send) -> None:
        runs.append("tried")
        await step("in the handler")
        value = await child()
        if runs.count("tried") <= times:
            if how == "raise":
                raise LookupError("handler")
            if how == "503":
                await answer(send, b"busy", status=503)
                return
        await answer(send, value.encode())

    return handle


@pytest.mark.parametrize("how", ["raise", "503", "child"])
async def test_a_failure_is_not_final_and_a_retry_continues_where_it_failed(
    durable: Durable, how: str
) -> None:
    runs: list[str] = []
    wrapped = durable.wrap(failing(durable, runs, times=2, how=how))

    for _ in range(2):
        exchanged = Exchange(b"{}")
        try:
            await wrapped(keyed(), exchanged.receive, exchanged.send)
        except LookupError:
            pass
        assert exchanged.status in (500, 503)
        assert exchanged.headers("idempotent-replayed") == []
    third = await exchange(wrapped, keyed(), b"{}")
    fourth = await exchange(wrapped, keyed(), b"{}")

    assert (third.status, third.body) == (200, b"in the child")
    assert fourth.headers("idempotent-replayed") == ["true"]
    assert runs.count("in the handler") == 1
    assert runs.count("in the child") == 1
    assert runs.count("tried") == 3


async def test_a_request_cut_off_by_a_restart_continues_with_its_retry(url: str) -> None:
    runs: list[str] = []
    held = asyncio.Event()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def first() -> str:
        runs.append("first")
        return "a"

    @durable.step
    async def second() -> str:
        runs.append("second")
        if not held.is_set():
            held.set()
            await asyncio.Event().wait()
        return "b"

    async def handle(scope, receive, send) -> None:
        await answer(send, (await first() + await second()).encode())

    wrapped = durable.wrap(handle)
    async with durable:
        cut_off = asyncio.ensure_future(exchange(wrapped, keyed(), b"{}"))
        await held.wait()
    result = await cut_off
    assert (result.status, result.headers("retry-after")) == (503, ["1"])
    async with durable:
        # Only its client resumes a request: nobody else has its credentials.
        again = await exchange(wrapped, keyed(), b"{}")

    assert (again.status, again.body) == (200, b"ab")
    assert runs == ["first", "second", "second"]


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_refusal_before_anything_was_recorded_is_not_stored(
    durable: Durable, status: int
) -> None:
    async def handle(scope, receive, send) -> None:
        await answer(send, b"no", status=status)

    app = App(handle)
    wrapped = durable.wrap(app)
    results = [await exchange(wrapped, keyed(), b"{}") for _ in range(2)]

    assert [r.status for r in results] == [status] * 2
    assert app.calls == 2
    # Nothing is left of the key: it can be used for the corrected request.
    assert (await exchange(wrapped, keyed(), b"corrected")).status == status


async def test_a_refusal_after_something_was_recorded_is_final(durable: Durable) -> None:
    @durable.step
    async def step() -> None: ...

    async def handle(scope, receive, send) -> None:
        await step()
        await answer(send, b"no", status=404)

    app = App(handle)
    wrapped = durable.wrap(app)
    results = [await exchange(wrapped, keyed(), b"{}") for _ in range(2)]

    assert [(r.status, r.body) for r in results] == [(404, b"no")] * 2
    assert app.calls == 1


@pytest.mark.parametrize("status", [401, 403, 429])
async def test_a_response_about_the_moment_is_never_final(durable: Durable, status: int) -> None:
    runs = []

    @durable.step
    async def step() -> None:
        runs.append(1)

    async def handle(scope, receive, send) -> None:
        await step()
        await answer(send, status=status if app.calls == 1 else 200)

    app = App(handle)
    wrapped = durable.wrap(app)

    assert (await exchange(wrapped, keyed(), b"{}")).status == status
    assert (await exchange(wrapped, keyed(), b"{}")).status == 200
    assert runs == [1]


async def test_a_client_that_goes_away_does_not_stop_the_work(durable: Durable) -> None:
    noticed = []

    async def handle(scope, receive, send) -> None:
        await read_all(receive)
        listening = asyncio.ensure_future(receive())
        begun.set()
        await may_end.wait()
        noticed.append(listening.done())
        await answer(send, b"done")
        noticed.append((await listening)["type"])

    begun, may_end = asyncio.Event(), asyncio.Event()
    app = App(handle)
    wrapped = durable.wrap(app)
    exchanged = Exchange(b"{}")
    call = asyncio.ensure_future(wrapped(keyed(), exchanged.receive, exchanged.send))
    await begun.wait()
    exchanged.disconnected.set()
    await asyncio.sleep(0)
    may_end.set()
    await call
    await until(lambda: len(noticed) > 1)

    assert noticed == [False, "http.disconnect"]
    assert (await exchange(wrapped, keyed(), b"{}")).body == b"done"
    assert app.calls == 1


async def test_a_server_that_cancels_the_request_does_not_stop_the_work(durable: Durable) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def handle(scope, receive, send) -> None:
        begun.set()
        await may_end.wait()
        await answer(send, b"done")

    app = App(handle)
    wrapped = durable.wrap(app)
    exchanged = Exchange(b"{}")
    call = asyncio.ensure_future(wrapped(keyed(), exchanged.receive, exchanged.send))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    may_end.set()
    result = await exchange(wrapped, keyed(), b"{}")

    assert (result.body, app.calls) == (b"done", 1)
    assert exchanged.sent == []


async def test_a_background_task_that_raises_undoes_nothing(durable: Durable) -> None:
    async def handle(scope, receive, send) -> None:
        await answer(send, b"done")
        raise LookupError("after the answer")

    app = App(handle)
    wrapped = durable.wrap(app)
    exchanged = Exchange(b"{}")
    with pytest.raises(LookupError):
        await wrapped(keyed(), exchanged.receive, exchanged.send)

    assert exchanged.body == b"done"
    assert (await exchange(wrapped, keyed(), b"{}")).body == b"done"
    assert app.calls == 1


async def test_calls_after_the_response_are_not_part_of_the_request(durable: Durable) -> None:
    after = asyncio.Event()
    ids = []

    @durable.workflow
    async def work() -> str | None:
        return durable.workflow_id

    async def handle(scope, receive, send) -> None:
        ids.append(durable.workflow_id)
        await answer(send)
        ids.append(durable.workflow_id)
        ids.append(await work())
        after.set()

    wrapped = durable.wrap(App(handle))
    first = await exchange(wrapped, keyed(), b"{}")
    await after.wait()

    assert first.headers("durable-id") == [ids[0]]
    assert ids[1] is None
    assert ids[2] is not None
    assert not ids[2].startswith(ids[0] or "")


async def test_the_response_is_durable_before_its_first_message(
    durable: Durable, tmp_path: Path
) -> None:
    seen = []

    async def send(message) -> None:
        connection = sqlite3.connect(tmp_path / "test.db")
        seen.append(connection.execute("SELECT state FROM asgi_durable_workflows").fetchone())
        connection.close()

    exchanged = Exchange(b"{}")
    await durable.wrap(App())(keyed(), exchanged.receive, send)

    assert seen == [("SUCCESS",)] * 2


async def test_a_response_that_cannot_be_committed_is_not_shown(url: str, tmp_path: Path) -> None:
    async with Durable(f"{url}?busy_timeout=0.01", storage_patience=0.0) as durable:
        lock = sqlite3.connect(tmp_path / "test.db", isolation_level=None)

        async def handle(scope, receive, send) -> None:
            if app.calls == 1:
                lock.execute("BEGIN IMMEDIATE")
            await answer(send, f"call {app.calls}".encode())

        app = App(handle)
        wrapped = durable.wrap(app)
        first = await exchange(wrapped, keyed(), b"{}")
        claim = await exchange(wrapped, keyed("other"), b"{}")
        lock.close()
        second = await exchange(wrapped, keyed(), b"{}")
        third = await exchange(wrapped, keyed(), b"{}")

    assert (first.status, first.headers("retry-after")) == (503, ["1"])
    assert b"call 1" not in first.body
    assert problem(first)["code"] == "OUTCOME_UNKNOWN"
    assert first.is_complete
    assert problem(claim)["code"] == StorageUnavailableError.default_code
    assert (second.body, third.body) == (b"call 2", b"call 2")


@pytest.mark.parametrize("is_durable", [True, False])
async def test_a_response_that_its_durable_log_repeats_is_sent(
    url: str, tmp_path: Path, is_durable: bool
) -> None:
    async with Durable(f"{url}?busy_timeout=0.01", storage_patience=0.0) as durable:
        lock = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
        runs = []

        @durable.step
        async def step(name: str) -> str:
            runs.append(name)
            return name

        async def handle(scope, receive, send) -> None:
            said = await step("a")
            if is_durable:
                # It begins only once what comes before it is durable, and so is its own record.
                await save()
            if app.calls == 1:
                lock.execute("BEGIN IMMEDIATE")
            await answer(send, said.encode())

        @durable.transaction
        async def save() -> None: ...

        app = App(handle)
        wrapped = durable.wrap(app)
        first = await exchange(wrapped, keyed(), b"{}")
        lock.close()
        second = await exchange(wrapped, keyed(), b"{}")

    assert first.status == (200 if is_durable else 503)
    assert (second.status, second.body, runs.count("a")) == (200, b"a", 1 if is_durable else 2)


async def test_an_event_stream_passes_through_and_has_no_replay(durable: Durable) -> None:
    arrived: list[bytes] = []
    may_go_on = asyncio.Event()

    async def handle(scope, receive, send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await may_go_on.wait()
        await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": False})

    app = App(handle)
    wrapped = durable.wrap(app)
    exchanged = Exchange(b"{}")
    call = asyncio.ensure_future(wrapped(keyed(), exchanged.receive, exchanged.send))
    await exchanged.answer_began.wait()
    arrived.append(exchanged.body)
    may_go_on.set()
    await call
    again = await exchange(wrapped, keyed(), b"{}")

    assert arrived == [b"data: 1\n\n"]
    assert exchanged.body == b"data: 1\n\ndata: 2\n\n"
    assert exchanged.is_complete
    assert (again.status, app.calls) == (410, 1)
    assert problem(again)["original_status"] == 200
    assert again.headers("idempotent-replayed") == ["true"]


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x" * 6, b"x" * 5], [b"x"] * 11])
async def test_a_response_over_the_limit_passes_through_and_is_not_stored(
    url: str, chunks: list[bytes]
) -> None:
    async def handle(scope, receive, send) -> None:
        start = {"type": "http.response.start", "status": 201}
        await send({**start, "headers": [(b"location", b"/things/1")]})
        for chunk in chunks[:-1]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": chunks[-1]})

    app = App(handle)
    async with Durable(url, idempotency=IdempotencyPolicy(max_response_body=10)) as durable:
        first = await exchange(durable.wrap(app), keyed(), b"{}")
        again = await exchange(durable.wrap(app), keyed(), b"{}")

    assert (first.status, first.body, app.calls) == (201, b"x" * 11, 1)
    assert first.is_complete
    assert again.status == 410
    assert (problem(again)["original_status"], problem(again)["location"]) == (201, "/things/1")


async def test_chunks_within_the_limit_are_stored_as_one_response(durable: Durable) -> None:
    async def handle(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in (b"a", b"", b"b"):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    wrapped = durable.wrap(App(handle))
    first, again = [await exchange(wrapped, keyed(), b"{}") for _ in range(2)]

    assert (first.body, again.body) == (b"ab", b"ab")


async def test_an_event_stream_ends_when_its_client_leaves(durable: Durable) -> None:
    async def handle(scope, receive, send) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    app = App(handle)
    wrapped = durable.wrap(app)
    exchanged = Exchange(b"{}")
    call = asyncio.ensure_future(wrapped(keyed(), exchanged.receive, exchanged.send))
    await exchanged.answer_began.wait()
    exchanged.disconnected.set()
    async with asyncio.timeout(60):
        await call

    assert exchanged.body == b"data: 1\n\n"


async def test_an_event_stream_without_events_ends_when_its_client_leaves(
    durable: Durable,
) -> None:
    async def handle(scope, receive, send) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"Text/Event-Stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        assert (await receive())["type"] == "http.disconnect"

    exchanged = Exchange(b"{}")
    exchanged.disconnected.set()
    async with asyncio.timeout(60):
        await durable.wrap(App(handle))(keyed(), exchanged.receive, exchanged.send)

    assert exchanged.status == 200


async def test_a_length_of_very_many_digits_is_too_large(durable: Durable) -> None:
    scope = keyed(headers=[("content-length", "9" * 5000)])

    assert (await exchange(durable.wrap(App()), scope, b"{}")).status == 413


async def test_a_stack_inside_another_leaves_the_request_to_it(durable: Durable) -> None:
    app = App()
    nested = durable.wrap(durable.wrap(app))

    results = [await exchange(nested, keyed(), b"{}") for _ in range(2)]

    assert [(r.status, r.body) for r in results] == [(200, b"call 1")] * 2


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_of_the_request_itself_does_not_use_its_key_up(
    durable: Durable, status: int
) -> None:
    async def handle(scope, receive, send) -> None:
        if scope["path"] == "/orders/":
            await answer(send, b"", status=status, headers=[(b"location", b"/orders")])
        else:
            await answer(send, b"ordered")

    wrapped = durable.wrap(App(handle))

    assert (await exchange(wrapped, keyed(path="/orders/"), b"{}")).status == status
    assert (await exchange(wrapped, keyed(path="/orders"), b"{}")).body == b"ordered"


async def test_a_response_without_a_body_is_replayed_without_a_length(durable: Durable) -> None:
    async def handle(scope, receive, send) -> None:
        await answer(send, b"", status=204, headers=[])

    wrapped = durable.wrap(App(handle))
    results = [await exchange(wrapped, keyed(), b"{}") for _ in range(2)]

    assert [(r.status, r.headers("content-length")) for r in results] == [(204, [])] * 2


async def test_headers_of_the_connection_and_of_the_moment_are_not_replayed(
    durable: Durable,
) -> None:
    passing = {
        b"Connection": b"X-Hop , keep-alive",
        b"X-Hop": b"1",
        b"RateLimit": b'"default";r=50',
        b"RateLimit-Policy": b'"default";q=100',
        b"X-RateLimit-Remaining": b"50",
        b"X-Rate-Limit-Reset": b"9",
    }

    async def handle(scope, receive, send) -> None:
        await answer(send, headers=[*passing.items(), (b"X-Rated", b"5"), (b"ETag", b'"1"')])

    wrapped = durable.wrap(App(handle))
    first, again = [await exchange(wrapped, keyed()) for _ in range(2)]

    for name, value in passing.items():
        assert first.headers(name.decode()) == [value.decode()]
        assert again.headers(name.decode()) == []
    assert (again.headers("x-rated"), again.headers("etag")) == (["5"], ['"1"'])


async def test_marks_that_the_app_passes_on_are_not_taken_for_ours(durable: Durable) -> None:
    async def handle(scope, receive, send) -> None:
        marks = [(b"Idempotent-Replayed", b"true"), (b"Idempotency-Key", b"upstream")]
        await answer(send, headers=marks)

    wrapped = durable.wrap(App(handle))
    first, again = [await exchange(wrapped, keyed(), b"{}") for _ in range(2)]

    assert (first.headers("idempotent-replayed"), first.headers("idempotency-key")) == ([], ["k"])
    assert again.headers("idempotent-replayed") == ["true"]
    assert again.headers("idempotency-key") == ["k"]


async def test_a_server_that_gives_up_during_the_claim_is_sent_nothing(
    durable: Durable,
) -> None:
    app = App()
    wrapped = durable.wrap(app)
    exchanged = Exchange(b"{}")
    call = asyncio.ensure_future(wrapped(keyed(), exchanged.receive, exchanged.send))
    while not call.done() and app.calls == 0:
        await asyncio.sleep(0)
        if any("claim" in repr(task.get_coro()) for task in asyncio.all_tasks()):
            call.cancel()
        call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    result = await exchange(wrapped, keyed(), b"{}")

    assert result.body == b"call 1"
    assert exchanged.sent == []


def test_one_key_on_several_event_loops_is_one_execution(url: str) -> None:
    durable = Durable(url)
    calls: list[int] = []

    async def handle(scope, receive, send) -> None:
        calls.append(1)
        await asyncio.sleep(0)
        await answer(send, f"call {len(calls)}".encode())

    wrapped = durable.wrap(handle)
    barrier = threading.Barrier(8)
    results: list[Exchange] = []

    def client() -> None:
        barrier.wait()
        results.append(asyncio.run(exchange(wrapped, keyed(), b"{}")))

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(durable.engine.stop())

    assert calls == [1]
    assert {r.status for r in results} <= {200, 409, 503}
    assert {r.body for r in results if r.status == 200} <= {b"call 1"}


async def test_extensions_that_pass_the_recorder_by_are_hidden(durable: Durable) -> None:
    seen = []

    async def handle(scope, receive, send) -> None:
        seen.append(sorted(scope["extensions"]))
        await answer(send)

    extensions = {"http.response.pathsend": {}, "http.response.trailers": {}, "tls": {}}
    wrapped = durable.wrap(App(handle))
    await exchange(wrapped, keyed(extensions=extensions), b"{}")
    await exchange(wrapped, http_scope(extensions=extensions))

    assert seen == [["tls"], sorted(extensions)]


async def test_an_app_that_never_responds_is_a_500_and_its_retry_runs(durable: Durable) -> None:
    async def handle(scope, receive, send) -> None:
        if app.calls == 2:
            await answer(send, b"late")

    app = App(handle)
    wrapped = durable.wrap(app)

    first = await exchange(wrapped, keyed(), b"{}")
    assert (first.status, problem(first)["retryable"]) == (500, True)
    assert first.headers("retry-after") == ["1"]
    assert (await exchange(wrapped, keyed(), b"{}")).body == b"late"


async def test_an_error_of_the_library_in_a_handler_is_its_response(durable: Durable) -> None:
    @durable.step
    async def step() -> None: ...

    async def handle(scope, receive, send) -> None:
        await step()
        raise DurableError("sold out", code="SOLD_OUT", status_code=410)

    wrapped = durable.wrap(App(handle))
    results = [await exchange(wrapped, keyed(), b"{}") for _ in range(2)]

    assert [(r.status, problem(r)["code"]) for r in results] == [(410, "SOLD_OUT")] * 2
    assert results[1].headers("idempotent-replayed") == ["true"]


async def test_code_that_left_its_log_is_a_500_and_can_be_repaired(durable: Durable) -> None:
    variant = ["a"]

    @durable.step
    async def step(name: str) -> None: ...

    async def handle(scope, receive, send) -> None:
        await step(variant[0])
        await answer(send, status=503 if app.calls == 1 else 200)

    app = App(handle)
    wrapped = durable.wrap(app)
    await exchange(wrapped, keyed(), b"{}")
    variant[0] = "b"
    diverged = await exchange(wrapped, keyed(), b"{}")
    variant[0] = "a"
    repaired = await exchange(wrapped, keyed(), b"{}")

    assert diverged.status == 500
    assert problem(diverged)["code"] == NonDeterministicWorkflowError.default_code
    assert repaired.status == 200


async def test_the_request_id_of_the_first_attempt_reaches_a_resumed_child(url: str) -> None:
    held = asyncio.Event()
    seen: list[str | None] = []
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def step() -> None:
        seen.append(durable.request_id)
        if len(seen) == 1:
            held.set()
            await asyncio.Event().wait()

    @durable.workflow
    async def work() -> None:
        await step()

    async def handle(scope, receive, send) -> None:
        await work()
        await answer(send)

    wrapped = durable.wrap(handle)
    scope = keyed(headers=[("x-request-id", "first-try")])
    async with durable:
        cut_off = asyncio.ensure_future(exchange(wrapped, scope, b"{}"))
        await held.wait()
    durable_id = (await cut_off).headers("durable-id")[0]
    async with durable:
        # The child has a name and an input: it is finished without the client.
        child = await durable.retrieve_workflow(f"{durable_id}~0")
        await child.get_result(timeout=60)
        again = await exchange(wrapped, keyed(), b"{}")

    assert seen == ["first-try", "first-try"]
    assert again.status == 200


@pytest.mark.parametrize("media_type", [b"text/plain", b"text/event-stream"])
@pytest.mark.parametrize("stream", ["bypass", "record"])
async def test_headers_that_are_given_once_reach_the_client_and_every_replay(
    url: str, media_type: bytes, stream: Any
) -> None:
    async def handle(scope, receive, send) -> None:
        headers = iter([(b"Content-Type", media_type), (b"Location", b"/things/1")])
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n"})

    durable = Durable(url, idempotency=IdempotencyPolicy(stream=stream), drain_timeout=0.0)
    app = durable.wrap(handle)
    async with durable:
        unkeyed = await exchange(app, http_scope("POST"))
        first, again = [await exchange(app, keyed()) for _ in range(2)]

    answers = [unkeyed, first, again]
    if (media_type, stream) == (b"text/event-stream", "bypass"):
        assert problem(answers.pop())["location"] == "/things/1"
    assert [a.status for a in answers] == [201] * len(answers)
    assert {tuple(a.headers("location")) for a in answers} == {("/things/1",)}
    assert {tuple(a.headers("content-type")) for a in answers} == {(media_type.decode(),)}


async def test_a_retry_after_that_is_given_once_counts(durable: Durable) -> None:
    async def handle(scope, receive, send) -> None:
        headers = iter([(b"Retry-After", b"60")])
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    app = durable.wrap(handle)
    first, again = [await exchange(app, keyed()) for _ in range(2)]

    assert first.headers("retry-after") == ["60"]
    assert problem(again)["code"] == "RETRY_LATER"
