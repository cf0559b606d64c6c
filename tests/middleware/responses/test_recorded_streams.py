"""Streams that are recorded chunk by chunk: whole for retries, followed by duplicates."""

from __future__ import annotations

import asyncio

import pytest
from support.asgi import Exchange, GoneExchange, exchange, http_scope, keyed
from support.executors import declared_dead, storage_of, until
from support.interruption import Gate
from support.processes.scripts import (
    Script,
    ask,
    begin,
    event,
    events,
    last_id,
    offsets,
    recording,
    without_ids,
)

from asgi_durable import Durable, DurableUsageError, IdempotencyPolicy
from asgi_durable.engine.requests import response_streams as streams
from asgi_durable.storage.protocol import PAGE_BYTES

pytestmark = pytest.mark.anyio

REPLAYED = ["true"]


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def pieces_of(durable: Durable, exchanged: Exchange) -> list[bytes]:
    """Return the recorded part of a response's body."""
    (workflow_id,) = exchanged.headers("durable-id")
    found = [piece async for piece in all_pieces(durable, workflow_id)]
    return [piece.data for piece in found if piece.cut_to is None]


async def all_pieces(durable: Durable, workflow_id: str):
    storage, after = storage_of(durable), -1
    while page := await storage.read_chunks(workflow_id, after):
        for piece in page:
            yield piece
        after = page[-1].end_offset


def has(exchanged: Exchange, body: bytes):
    return lambda: without_ids(exchanged.body) == body


async def test_a_retry_gets_the_whole_stream_byte_for_byte(url: str) -> None:
    durable, app = recording(url), Script(events("abc"))
    wrapped = durable.wrap(app)
    async with durable:
        first = await ask(wrapped)
        again = await ask(wrapped)

    assert without_ids(first.body) == b"".join(events("abc"))
    assert offsets(first.body) == [9, 18, 27]
    assert (again.status, again.body, again.is_complete) == (200, first.body, True)
    assert (first.headers("idempotent-replayed"), again.headers("idempotent-replayed")) == (
        [],
        REPLAYED,
    )
    assert again.headers("x-call") == first.headers("x-call") == ["0"]
    assert app.calls == 1


async def test_each_chunk_is_durable_before_it_is_sent(url: str) -> None:
    durable, gate, seen = recording(url), Gate(), []
    app = Script([event("a"), gate, event("b")])
    exchanged = Exchange(b"")

    async def send(message) -> None:
        await exchanged.send(message)
        if message["type"] == "http.response.body":
            seen.append(await pieces_of(durable, exchanged))
            gate.open()

    async with durable:
        await durable.wrap(app)(keyed(), exchanged.receive, send)

    assert seen == [
        [event("a")],
        [event("a"), event("b")],
        [event("a"), event("b")],
    ]


async def test_what_waits_at_one_time_is_recorded_together(url: str) -> None:
    durable, app = recording(url), Script([event("a")] * 200)
    async with durable:
        first = await ask(durable.wrap(app))
        kept = await pieces_of(durable, first)

    assert b"".join(kept) == event("a") * 200
    assert len(kept) < 20


async def test_an_app_that_is_faster_than_its_client_waits(url: str) -> None:
    durable, produced, gate = recording(url), [], Gate()
    chunk = event("x" * 10_000)

    async def serve(scope, receive, send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(100):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            produced.append(number)
        await send({"type": "http.response.body"})

    exchanged = Exchange(b"")

    async def send(message) -> None:
        await exchanged.send(message)
        if message["type"] == "http.response.body":
            await gate.wait()

    async with durable:
        call = asyncio.create_task(durable.wrap(serve)(keyed(), exchanged.receive, send))
        await gate.reached.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        held = len(produced)
        gate.open()
        await call

    assert held < 20
    assert without_ids(exchanged.body) == chunk * 100


@pytest.mark.parametrize("is_here", [True, False])
async def test_a_duplicate_follows_from_the_beginning_to_the_end(url: str, is_here: bool) -> None:
    here, there = recording(url), recording(url)
    gates = [Gate(), Gate()]
    app = Script([event("a"), gates[0], event("b"), gates[1], event("c")])
    first, duplicate = Exchange(b""), Exchange(b"")
    wrapped = here.wrap(app)
    async with here, there:
        call = begin(wrapped, first)
        await until(has(first, event("a")))
        call_of_duplicate = begin(wrapped if is_here else there.wrap(app), duplicate)
        await until(has(duplicate, event("a")))
        gates[0].open()
        await until(has(duplicate, event("a") + event("b")))
        gates[1].open()
        await asyncio.gather(call, call_of_duplicate)

    assert duplicate.body == first.body
    assert (duplicate.is_complete, duplicate.headers("idempotent-replayed"), app.calls) == (
        True,
        REPLAYED,
        1,
    )


async def test_a_duplicate_in_the_same_process_gets_new_chunks_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FIRST_POLL_SECONDS", 1000.0)
    monkeypatch.setattr(streams, "LONGEST_POLL_SECONDS", 1000.0)
    durable, gates = recording(url), [Gate(), Gate()]
    wrapped = durable.wrap(Script([event("a"), gates[0], event("b"), gates[1]]))
    first, duplicate = Exchange(b""), Exchange(b"")
    async with durable:
        call = begin(wrapped, first)
        await until(has(first, event("a")))
        call_of_duplicate = begin(wrapped, duplicate)
        await until(has(duplicate, event("a")))
        gates[0].open()
        await until(has(duplicate, event("a") + event("b")))
        gates[1].open()
        await asyncio.gather(call, call_of_duplicate)

    assert duplicate.is_complete


async def test_a_duplicate_waits_for_the_beginning(url: str) -> None:
    durable, begun, gate = recording(url), Gate(), Gate()
    app = Script([event("a"), gate])

    async def serve(scope, receive, send) -> None:
        await begun.wait()
        await app(scope, receive, send)

    wrapped, first, duplicate = durable.wrap(serve), Exchange(b""), Exchange(b"")
    async with durable:
        call = begin(wrapped, first)
        await begun.reached.wait()
        call_of_duplicate = begin(wrapped, duplicate)
        begun.open()
        await until(has(duplicate, event("a")))
        gate.open()
        await asyncio.gather(call, call_of_duplicate)

    assert duplicate.body == first.body


@pytest.mark.parametrize("policy", [{"dialect": "ietf"}, {"stream": "bypass"}])
async def test_a_duplicate_that_does_not_follow_gets_a_retry_time(
    url: str, policy: dict[str, str]
) -> None:
    here, there, gate = recording(url), recording(url, **policy, max_wait=0.0), Gate()
    app, first = Script([event("a"), gate]), Exchange(b"")
    async with here, there:
        call = begin(here.wrap(app), first)
        await until(has(first, event("a")))
        duplicate = await ask(there.wrap(app))
        gate.open()
        await call

    assert duplicate.status == 409


async def test_not_more_follow_than_may(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_FOLLOWERS_OF_ONE", 1)
    durable, gate = recording(url, max_wait=0.0), Gate()
    wrapped = durable.wrap(Script([event("a"), gate]))
    first, duplicate = Exchange(b""), Exchange(b"")
    async with durable:
        call = begin(wrapped, first)
        await until(has(first, event("a")))
        following = begin(wrapped, duplicate)
        await until(has(duplicate, event("a")))
        refused = await ask(wrapped)
        gate.open()
        await asyncio.gather(call, following)
        path = f"/durable/requests/{first.headers('durable-id')[0]}/result"
        result = await exchange(wrapped, http_scope("GET", path))

    assert (refused.status, result.status) == (409, 200)


async def test_events_that_have_ids_keep_them(url: str) -> None:
    durable = recording(url)
    sent = [b"id: mine\ndata: a\n\n", b"data\r\ndata: b\r\n\r\n", b"retry: 10\n\n"]
    async with durable:
        first = await ask(durable.wrap(Script(sent)))

    assert first.body.startswith(sent[0])
    assert offsets(first.body) == [len(sent[0]) + len(sent[1])]
    assert without_ids(first.body) == b"".join(sent)


async def test_a_part_of_an_event_waits_for_the_rest(url: str) -> None:
    durable, gate = recording(url), Gate()
    app, exchanged = Script([b"data: a\n\nda", b"ta: b", gate, b"\n\ndata: c"]), Exchange(b"")
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await gate.reached.wait()
        await until(has(exchanged, b"data: a\n\n"))
        gate.open()
        await call
        again = await ask(wrapped)

    assert without_ids(exchanged.body) == b"data: a\n\ndata: b\n\ndata: c"
    assert again.body == exchanged.body


async def test_comments_are_sent_and_not_recorded(url: str) -> None:
    durable, gate = recording(url), Gate()
    app, exchanged = Script([b": ping 1\n\n", gate, event("a")]), Exchange(b"")
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await until(has(exchanged, b": ping 1\n\n"))
        gate.open()
        await call
        again = await ask(wrapped)

    assert without_ids(exchanged.body) == b": ping 1\n\n" + event("a")
    assert without_ids(again.body) == event("a")


@pytest.mark.parametrize("seen", [9, 18, 27])
async def test_a_client_resumes_behind_the_event_that_it_has_seen(url: str, seen: int) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script(events("abc")))
    async with durable:
        first = await ask(wrapped)
        prefix = last_id(first.body).rpartition("-")[0]
        again = await ask(wrapped, f"{prefix}-{seen}")

    assert without_ids(again.body) == b"".join(events("abc"))[seen:]
    assert first.body.endswith(again.body)
    assert again.is_complete


@pytest.mark.parametrize("seen", ["mine", "1f-9", "9"])
async def test_a_client_that_has_seen_other_events_gets_a_rollback(url: str, seen: str) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script(events("ab")))
    async with durable:
        first = await ask(wrapped)
        again = await ask(wrapped, seen)

    prefix = last_id(first.body).rpartition("-")[0].encode()
    assert again.body == b"event: rollback\nid: %s-0\ndata: \n\n" % prefix + first.body


async def test_a_first_request_may_have_an_id_that_is_the_apps(url: str) -> None:
    durable = recording(url)
    async with durable:
        first = await ask(durable.wrap(Script(events("ab"))), "mine")
        other = await ask(durable.wrap(Script(events("ab"))), "1f-9", key="other")

    assert without_ids(first.body) == b"".join(events("ab"))
    assert other.body.startswith(b"event: rollback\n")


async def test_the_result_page_has_the_stream_as_well(url: str) -> None:
    durable, gate = recording(url), Gate()
    wrapped, first = durable.wrap(Script([*events("ab"), gate, event("c")])), Exchange(b"")
    during = Exchange(b"")
    async with durable:
        call = begin(wrapped, first)
        await until(has(first, b"".join(events("ab"))))
        path = f"/durable/requests/{first.headers('durable-id')[0]}/result"
        head = await exchange(wrapped, http_scope("HEAD", path))
        seen = last_id(first.body)
        scope = http_scope("GET", path, [("Last-Event-ID", seen)])
        looking = asyncio.create_task(wrapped(scope, during.receive, during.send))
        gate.open()
        await asyncio.gather(call, looking)
        after = await exchange(wrapped, http_scope("GET", path))
        others = await exchange(wrapped, http_scope("GET", path, [("authorization", "Bearer b")]))

    assert without_ids(during.body) == event("c")
    assert (after.body, after.headers("idempotent-replayed")) == (first.body, REPLAYED)
    assert (head.status, head.body, others.status) == (200, b"", 404)


@pytest.mark.parametrize(
    ("policy", "pieces"),
    [({}, [b"a", b"b"]), ({"max_response_body": 10}, [b"x" * 8, b"y" * 8, b"z" * 200_000])],
)
async def test_a_response_that_takes_long_or_is_long_is_recorded_too(
    url: str, policy: dict[str, int], pieces: list[bytes]
) -> None:
    durable, exchanged, gate = recording(url, **policy), Exchange(b""), Gate()
    *begun, last = pieces
    app = Script([*begun, gate, last], media_type=b"text/plain")
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await until(has(exchanged, b"".join(begun)))
        gate.open()
        await call
        again = await ask(wrapped, "ignored")

    assert exchanged.body == again.body == b"".join(pieces)
    assert (again.is_complete, app.calls) == (True, 1)


async def test_a_short_response_is_stored_as_any_other(url: str) -> None:
    durable = recording(url, stream_after=1000.0)
    wrapped = durable.wrap(Script([b"a", b"b"], media_type=b"text/plain"))
    async with durable:
        await ask(wrapped)
        again = await ask(wrapped)
        kept = await pieces_of(durable, again)

    assert (again.body, again.headers("content-length"), kept) == (b"ab", [], [])


@pytest.mark.parametrize("length", [[], [(b"Content-Length", b"5")]], ids=["unknown", "known"])
@pytest.mark.parametrize("stream_after", [0.0, 1000.0], ids=["recorded", "kept whole"])
async def test_a_replay_has_the_headers_of_the_first_response(
    url: str, stream_after: float, length: list[tuple[bytes, bytes]]
) -> None:
    durable, gate, first, duplicate = (
        recording(url, stream_after=stream_after),
        Gate(),
        *exchanges(2),
    )
    headers = [(b"content-type", b"text/plain"), *length]

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await gate.wait()
        await send({"type": "http.response.body", "body": b"cde", "more_body": False})

    wrapped = durable.wrap(app)
    async with durable:
        calls = [begin(wrapped, first)]
        await gate.reached.wait()
        if not stream_after:
            await until(has(first, b"ab"))
            calls.append(begin(wrapped, duplicate))
            await until(has(duplicate, b"ab"))
        gate.open()
        await asyncio.gather(*calls)
        again = await ask(wrapped)

    answers = [first, again, duplicate] if not stream_after else [first, again]
    assert [each.body for each in answers] == [b"abcde"] * len(answers)
    lengths = [each.headers("content-length") for each in answers]
    assert lengths == [["5"] if length else []] * len(answers)


async def test_events_have_no_length_as_ids_are_added(url: str) -> None:
    durable = recording(url)

    async def app(scope, receive, send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: a\n\n"})

    wrapped = durable.wrap(app)
    async with durable:
        answers = [await ask(wrapped) for _ in range(2)]

    assert [each.headers("content-length") for each in answers] == [[], []]
    assert answers[0].body == answers[1].body


def exchanges(number: int) -> list[Exchange]:
    return [Exchange(b"") for _ in range(number)]


async def test_a_long_stream_is_read_in_pages(url: str) -> None:
    durable = recording(url, max_response_body=10)
    size = PAGE_BYTES * 3
    wrapped = durable.wrap(Script([b"x" * size], media_type=b"text/plain"))
    async with durable:
        await ask(wrapped)
        again = await ask(wrapped)

    sent = [len(message.get("body", b"")) for message in again.sent]
    assert sum(sent) == size
    assert max(sent) <= PAGE_BYTES


async def test_a_client_that_goes_away_does_not_stop_the_recording(url: str) -> None:
    durable, gate, exchanged = recording(url), Gate(), GoneExchange()
    app = Script([event("a"), gate, event("b"), event("c")])
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await until(has(exchanged, event("a")))
        exchanged.disconnected.set()
        gate.open()
        await call
        again = await ask(wrapped)

    assert without_ids(exchanged.body) == event("a")
    assert without_ids(again.body) == b"".join(events("abc"))
    assert app.calls == 1


async def test_a_client_that_goes_away_can_stop_the_app(url: str) -> None:
    durable, gate, exchanged = recording(url, on_disconnect="cancel"), Gate(), Exchange(b"")
    app = Script([event("a"), gate, event("b")], events("ab"))
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, exchanged)
        await until(has(exchanged, event("a")))
        exchanged.disconnected.set()
        await call
        again = await ask(wrapped, last_id(exchanged.body))

    assert without_ids(again.body) == event("b")
    assert app.calls == 2


async def test_a_response_to_a_cancellation_is_not_recorded(url: str) -> None:
    durable, gate, exchanged = recording(url, on_disconnect="cancel"), Gate(), Exchange(b"")
    app = Script([event("a"), gate])

    async def serve(scope, receive, send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            await send({"type": "http.response.body", "body": event("bye"), "more_body": True})
            for _ in range(100):
                await asyncio.sleep(0)
            raise

    async with durable:
        call = begin(durable.wrap(serve), exchanged)
        await until(has(exchanged, event("a")))
        exchanged.disconnected.set()
        await call
        await durable.engine._running.services.committer.flush()
        kept = await pieces_of(durable, exchanged)

    assert kept == [event("a")]


@pytest.mark.parametrize("media_type", [b"text/event-stream", b"text/plain"])
async def test_a_stream_that_is_too_long_passes_through_and_is_not_stored(
    url: str, media_type: bytes
) -> None:
    durable, gate, first, duplicate = (
        recording(url, max_stream=40),
        Gate(),
        Exchange(b""),
        Exchange(b""),
    )
    script = [event("a"), gate, event("b" * 40), event("c")]
    app = Script(script, media_type=media_type)
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, first)
        await until(has(first, event("a")))
        following = begin(wrapped, duplicate)
        await until(has(duplicate, event("a")))
        gate.open()
        await asyncio.gather(call, following)
        again = await ask(wrapped)
        (workflow_id,) = first.headers("durable-id")
        left = [piece.data async for piece in all_pieces(durable, workflow_id)]

    whole = event("a") + event("b" * 40) + event("c")
    assert (without_ids(first.body), first.is_complete) == (whole, True)
    assert (without_ids(duplicate.body), duplicate.is_complete) == (event("a"), False)
    assert (again.status, app.calls, left) == (410, 1, [b""])


async def test_what_a_zombie_sends_is_neither_recorded_nor_shown(url: str) -> None:
    here, there, gate, first = recording(url), recording(url), Gate(), Exchange(b"")
    app = Script([event("a"), gate, event("b")])
    other = Script(events("ac"))
    async with here, there:
        call = begin(here.wrap(app), first)
        await until(has(first, event("a")))
        async with declared_dead(here):
            again = await ask(there.wrap(other), last_id(first.body))
            gate.open()
            await call
        replayed = await ask(there.wrap(other))

    assert (without_ids(first.body), first.is_complete) == (event("a"), False)
    assert without_ids(again.body) == event("c")
    assert without_ids(replayed.body) == b"".join(events("ac"))


async def test_a_stream_that_has_expired_is_made_again(url: str) -> None:
    durable, app = recording(url, retention=0.0), Script(events("ab"), events("xy"))
    wrapped = durable.wrap(app)
    async with durable:
        first = await ask(wrapped)
        again = await ask(wrapped, last_id(first.body))

    assert again.body.startswith(b"event: rollback\n")
    assert again.body.endswith(b"data: y\n\n")
    assert app.calls == 2


@pytest.mark.parametrize("settings", [{"stream": "replay"}, {"max_stream": -1}])
def test_what_cannot_be_meant_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(DurableUsageError):
        IdempotencyPolicy(**settings)
