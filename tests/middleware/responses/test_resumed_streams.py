"""Recorded streams of interrupted requests: they continue, and differing chunks are replaced."""

from __future__ import annotations

import asyncio
import random
import re

import pytest
from support.asgi import Exchange
from support.executors import storage_of, until
from support.interruption import Gate
from support.processes.scripts import (
    Client,
    Item,
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

from asgi_durable import Durable
from asgi_durable.engine.requests import response_streams as streams
from asgi_durable.storage.records import ChunkRecord

pytestmark = pytest.mark.anyio

BROKEN = LookupError("broken")
ROLLBACK = re.compile(rb"event: rollback\nid: [0-9a-f]+-[0-9]+\ndata: ([^\n]*)\n\n")


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def fail(app, **more) -> Exchange:
    """Send the request while its app raises; return what the client got."""
    exchanged = Exchange(b"")
    with pytest.raises(LookupError):
        await begin(app, exchanged, **more)
    return exchanged


async def kept_of(durable: Durable, exchanged: Exchange) -> bytes:
    """Return what is recorded of the body."""
    (workflow_id,) = exchanged.headers("durable-id")
    storage, after, kept = storage_of(durable), -1, []
    while page := await storage.read_chunks(workflow_id, after):
        kept += [piece.data for piece in page if piece.cut_to is None]
        after = page[-1].end_offset
    return b"".join(kept)


async def test_what_is_the_same_again_is_recorded_once_and_sent_once(url: str) -> None:
    durable = recording(url)
    app = Script([*events("ab"), BROKEN], events("abc"))
    wrapped = durable.wrap(app)
    async with durable:
        first = await fail(wrapped)
        seen = last_id(first.body)
        again = await ask(wrapped, seen)
        replayed = await ask(wrapped)
        kept = await kept_of(durable, again)

    assert (without_ids(first.body), first.is_complete) == (b"".join(events("ab")), False)
    assert (without_ids(again.body), again.is_complete) == (event("c"), True)
    assert replayed.body == first.body + again.body
    assert (kept, app.calls) == (b"".join(events("abc")), 2)


async def test_a_client_without_events_gets_the_whole_continued_stream(url: str) -> None:
    durable, gate, again = recording(url), Gate(), Exchange(b"")
    wrapped = durable.wrap(Script([*events("ab"), BROKEN], [*events("ab"), gate, event("c")]))
    async with durable:
        await fail(wrapped)
        call = begin(wrapped, again)
        await until(lambda: without_ids(again.body) == b"".join(events("ab")))
        gate.open()
        await call

    assert (offsets(again.body), again.is_complete) == ([9, 18, 27], True)


@pytest.mark.parametrize("second", ["ax", "axyz", "a", "xb", ""])
async def test_what_differs_is_taken_back(url: str, second: str) -> None:
    durable = recording(url)
    app = Script([*events("ab"), BROKEN], events(second))
    wrapped = durable.wrap(app)
    async with durable:
        first = await fail(wrapped)
        again = await ask(wrapped, last_id(first.body))
        replayed = await ask(wrapped)
        seen_before = await ask(wrapped, last_id(first.body))
        kept = await kept_of(durable, again)

    client = Client().take(first.body).take(again.body)
    assert client.names == second
    assert ROLLBACK.search(again.body)
    assert Client().take(first.body).take(seen_before.body).names == second
    assert (without_ids(replayed.body), kept) == (b"".join(events(second)),) * 2
    assert set(offsets(first.body)).isdisjoint(set(offsets(ROLLBACK.sub(b"", replayed.body))) - {9})


async def test_a_client_without_events_gets_no_rollback(url: str) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script([*events("ab"), BROKEN], events("xyz")))
    async with durable:
        await fail(wrapped)
        again = await ask(wrapped)
        replayed = await ask(wrapped)

    assert without_ids(again.body) == without_ids(replayed.body) == b"".join(events("xyz"))
    assert replayed.body == again.body


async def test_another_body_takes_the_place_of_what_was_recorded(url: str) -> None:
    durable, gate, first = recording(url), Gate(), Exchange(b"")
    app = Script([b"one ", gate, BROKEN], [b"one, ", b"two"], media_type=b"text/plain")
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, first)
        await until(lambda: first.body == b"one ")
        gate.open()
        with pytest.raises(LookupError):
            await call
        again = await ask(wrapped)
        replayed = await ask(wrapped)

    assert (first.body, first.is_complete) == (b"one ", False)
    assert again.body == replayed.body == b"one, two"


@pytest.mark.parametrize("is_new", [True, False])
async def test_the_start_that_was_sent_first_stays_if_the_response_is_of_its_kind(
    url: str, is_new: bool
) -> None:
    durable = recording(url)
    statuses = [200, 201] if is_new else [200]
    app = Script([*events("ab"), BROKEN], events("ab"), statuses=statuses)
    wrapped = durable.wrap(app)
    async with durable:
        first = await fail(wrapped)
        again = await ask(wrapped, last_id(first.body))
        replayed = await ask(wrapped)

    call, status = ("1", 201) if is_new else ("0", 200)
    assert [(each.status, each.headers("x-call")) for each in (again, replayed)] == [
        (status, [call])
    ] * 2
    assert bool(ROLLBACK.match(again.body)) == is_new
    assert Client().take(first.body).take(again.body).names == "ab"
    assert without_ids(replayed.body) == b"".join(events("ab"))


@pytest.mark.parametrize(("status", "is_final"), [(401, False), (503, False), (404, True)])
async def test_a_refusal_after_a_part_of_a_stream(url: str, status: int, is_final: bool) -> None:
    durable = recording(url)
    app = Script([event("a"), BROKEN], [b"no"], events("ab"), statuses=[200, status, 200])
    wrapped = durable.wrap(app)
    async with durable:
        first = await fail(wrapped)
        refused = await ask(wrapped)
        again = await ask(wrapped, last_id(first.body))

    assert refused.status == status
    assert again.status == (status if is_final else 200)
    if not is_final:
        assert without_ids(again.body) == event("b")


@pytest.mark.parametrize("media_type", [b"text/event-stream", b"text/plain"])
async def test_a_follower_gets_a_rollback_or_an_unfinished_response(
    sqlite_url: str, media_type: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FIRST_POLL_SECONDS", 1000.0)
    here, there = recording(sqlite_url), recording(sqlite_url)
    gates = [Gate(), Gate()]
    scripts: list[list[Item]] = [
        [event("a"), gates[0], BROKEN],
        [event("x"), gates[1], event("y")],
    ]
    app = Script(*scripts, media_type=media_type)
    first, duplicate, again = Exchange(b""), Exchange(b""), Exchange(b"")
    wrapped = here.wrap(app)
    async with here, there:
        call = begin(wrapped, first)
        await until(lambda: first.body)
        following = begin(there.wrap(app), duplicate)
        await until(lambda: duplicate.body)
        gates[0].open()
        with pytest.raises(LookupError):
            await call
        call = begin(wrapped, again)
        await until(lambda: again.body)
        gates[1].open()
        await call
        assert there.engine._running is not None
        there.engine._running.outcomes.wake(first.headers("durable-id")[0])
        await following

    if media_type == b"text/event-stream":
        assert (Client().take(duplicate.body).names, duplicate.is_complete) == ("xy", True)
    else:
        assert (duplicate.body, duplicate.is_complete) == (event("a"), False)


async def test_who_follows_what_is_interrupted_is_left(url: str) -> None:
    durable, gate, first, duplicate = recording(url), Gate(), Exchange(b""), Exchange(b"")
    wrapped = durable.wrap(Script([event("a"), gate, event("b"), BROKEN]))
    async with durable:
        call = begin(wrapped, first)
        await until(lambda: first.body)
        following = begin(wrapped, duplicate)
        await until(lambda: duplicate.body)
        gate.open()
        with pytest.raises(LookupError):
            await call
        await following

    assert (without_ids(duplicate.body), duplicate.is_complete) == (b"".join(events("ab")), False)


async def test_a_stream_too_long_before_is_not_recorded_again(url: str) -> None:
    durable = recording(url, max_stream=20)
    wrapped = durable.wrap(Script([*events("abc"), BROKEN], events("xyz")))
    async with durable:
        first = await fail(wrapped)
        again = await ask(wrapped, last_id(first.body))
        replayed = await ask(wrapped)

    assert Client().take(first.body).take(again.body).names == "xyz"
    assert replayed.status == 410


async def test_a_service_that_a_step_asked_is_not_asked_again(url: str) -> None:
    durable, asked = recording(url), []

    @durable.step
    async def tell(name: str) -> str:
        asked.append(name)
        return name * 2

    async def serve(scope, receive, send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for name in "ab":
            told = await tell(name)
            body = event(told)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            if name == "b" and len(asked) == 2:
                asked.append("broken")
                raise BROKEN
        await send({"type": "http.response.body"})

    wrapped = durable.wrap(serve)
    async with durable:
        first = await fail(wrapped)
        again = await ask(wrapped, last_id(first.body))

    assert asked == ["a", "b", "broken"]
    assert without_ids(first.body + again.body) == event("aa") + event("bb")


async def test_who_follows_gets_what_came_just_before_the_end(url: str) -> None:
    here, there = recording(url), recording(url)
    gate, first, duplicate = Gate(), Exchange(b""), Exchange(b"")
    app = Script([event("a"), gate, event("b")])
    async with here, there:
        call = begin(here.wrap(app), first)
        await until(lambda: first.body)
        storage = storage_of(there)
        read_chunks = storage.read_chunks

        async def read_late(workflow_id: str, after: int) -> list[ChunkRecord]:
            page = await read_chunks(workflow_id, after)
            if not page and not gate.is_open:
                gate.open()
                await call
            return page

        storage.read_chunks = read_late  # type: ignore[method-assign]
        await begin(there.wrap(app), duplicate)

    assert (duplicate.body, duplicate.is_complete) == (first.body, True)


async def test_another_encoding_is_another_response(url: str) -> None:
    durable, encodings = recording(url), [b"gzip", b"identity"]

    async def serve(scope, receive, send) -> None:
        encoding = encodings.pop(0)
        headers = [(b"content-type", b"text/event-stream"), (b"content-encoding", encoding)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": event("a"), "more_body": True})
        if encodings:
            raise BROKEN
        await send({"type": "http.response.body"})

    wrapped = durable.wrap(serve)
    async with durable:
        await fail(wrapped)
        again = await ask(wrapped)

    assert again.headers("content-encoding") == ["identity"]


async def test_attempts_that_are_used_up_end_a_stream(url: str) -> None:
    durable = recording(url, max_attempts=1)
    wrapped = durable.wrap(Script([event("a"), BROKEN]))
    async with durable:
        first = await fail(wrapped)
        again = await ask(wrapped, last_id(first.body))
        replayed = await ask(wrapped, last_id(first.body))

    assert (again.status, again.is_complete, replayed.status) == (500, True, 500)
    assert again.body == replayed.body
    assert b"ATTEMPTS_EXHAUSTED" in replayed.body


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_ever_takes_two_versions_for_one(sqlite_url: str, seed: int) -> None:
    chance = random.Random(seed)
    durable = recording(sqlite_url)
    scripts: list[list[Item]] = []
    names = ""
    for _ in range(6):
        names = names[: chance.randrange(len(names) + 1)]
        names += "".join(chance.choice("xyz") for _ in range(chance.randrange(4)))
        # One chunk of the source or several, which makes other recorded chunks.
        pieces = [b"".join(events(names))] if chance.random() < 0.3 else events(names)
        scripts.append([*pieces, BROKEN])
    scripts.append([*events(names + "end")])
    wrapped = durable.wrap(Script(*scripts))
    clients = [Client() for _ in range(4)]
    async with durable:
        for _ in range(7):
            client = chance.choice(clients)
            exchanged = Exchange(b"")
            call = begin(wrapped, exchanged, client.seen)
            await asyncio.wait([call])
            call.exception()
            lost = chance.choice([None, None, len(exchanged.body) // 2])
            if client.seen is None:
                client.__init__()
            client.take(exchanged.body[:lost])
        for client in clients:
            client.take((await ask(wrapped, client.seen)).body)

    assert [client.names for client in clients] == [names + "end"] * len(clients)
