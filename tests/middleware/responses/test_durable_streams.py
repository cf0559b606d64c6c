"""Reading a recorded stream part by part: what there is behind an offset, at once."""

from __future__ import annotations

import asyncio
import random

import pytest
from support.asgi import Exchange, exchange, http_scope
from support.executors import query, storage_of, until
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
    recording,
    without_ids,
)

from asgi_durable.engine.requests import response_streams as streams
from asgi_durable.storage.protocol import PAGE_BYTES
from asgi_durable.storage.records import ChunkRecord

pytestmark = pytest.mark.anyio

BROKEN = LookupError("broken")
TEXT = b"text/plain"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Reader:
    """Reads a stream as the protocol has it.

    Attributes:
        offset: Where it continues.
    """

    def __init__(self, app, first: Exchange) -> None:
        self._app = app
        self.path = f"/durable/requests/{first.headers('durable-id')[0]}/result"
        self.offset = "-1"

    async def look(self, query: str, *, method: str = "GET", headers=()) -> Exchange:
        """Read with a query."""
        scope = http_scope(method, self.path, headers, query_string=query.encode())
        return await exchange(self._app, scope)

    async def read(self) -> Exchange:
        """Read on."""
        found = await self.look(f"offset={self.offset}")
        if found.status == 200:
            (offset,) = found.headers("stream-next-offset")
            assert self.offset == "-1" or offset >= self.offset
            self.offset = offset
        return found


def state(found: Exchange) -> tuple[int, bytes, bool, bool]:
    """Return status and bytes, whether it is up to date, and whether it is closed."""
    assert found.is_complete
    flags = [found.headers(f"stream-{name}") for name in ("up-to-date", "closed")]
    assert all(flag in ([], ["true"]) for flag in flags)
    return found.status, without_ids(found.body), *map(bool, flags)


async def fail(app) -> Exchange:
    exchanged = Exchange(b"")
    with pytest.raises(LookupError):
        await begin(app, exchanged)
    return exchanged


@pytest.mark.parametrize("media_type", [b"text/event-stream", TEXT])
async def test_a_stream_is_read_while_it_is_produced(url: str, media_type: bytes) -> None:
    here, there = recording(url), recording(url)
    gates, first = [Gate(), Gate()], Exchange(b"")
    app = Script(
        [event("a"), gates[0], event("b"), gates[1], event("c")],
        media_type=media_type,
        statuses=[201],
    )
    async with here, there:
        call = begin(here.wrap(app), first)
        await until(lambda: without_ids(first.body) == event("a"))
        reader = Reader(there.wrap(app), first)
        found = [await reader.read(), await reader.read()]
        gates[0].open()
        await until(lambda: without_ids(first.body) == event("a") + event("b"))
        found.append(await reader.read())
        gates[1].open()
        await call
        found += [await reader.read(), await reader.read()]
        whole = await reader.look("")

    assert [state(one) for one in found] == [
        (200, event("a"), True, False),
        (200, b"", True, False),
        (200, event("b"), True, False),
        (200, event("c"), True, True),
        (200, b"", True, True),
    ]
    assert b"".join(one.body for one in found) == whole.body == first.body
    assert found[0].headers("content-type") == [media_type.decode()]
    assert (found[0].headers("cache-control"), found[0].headers("x-call")) == (["no-store"], [])
    assert whole.headers("stream-next-offset") == [reader.offset]
    assert (whole.status, whole.headers("stream-closed")) == (201, ["true"])


async def test_what_is_read_in_parts_is_followed_from_there(url: str) -> None:
    durable, gate, first, rest = recording(url), Gate(), Exchange(b""), Exchange(b"")
    wrapped = durable.wrap(Script([event("a"), gate, event("b")]))
    async with durable:
        call = begin(wrapped, first)
        await until(lambda: first.body)
        reader = Reader(wrapped, first)
        part = await reader.read()
        scope = http_scope("GET", reader.path, [("Last-Event-ID", reader.offset)])
        following = asyncio.create_task(wrapped(scope, rest.receive, rest.send))
        running = durable.engine._running
        assert running is not None
        # A stream that is complete before it is followed is replayed, and says that it is closed.
        await until(lambda: bool(running.requests.streams._followers))
        gate.open()
        await asyncio.gather(call, following)
        behind = await reader.look(f"offset={last_id(part.body)}")

    assert part.body + rest.body == first.body
    assert behind.body == rest.body
    assert rest.headers("stream-closed") == []


async def test_a_long_stream_is_read_in_pages(url: str) -> None:
    durable, size = recording(url, max_response_body=10), PAGE_BYTES * 2 + 10
    gate, first = Gate(), Exchange(b"")
    wrapped = durable.wrap(Script([b"x" * size, gate], media_type=TEXT))
    async with durable:
        call = begin(wrapped, first)
        await until(lambda: len(first.body) == size)
        reader = Reader(wrapped, first)
        found = [await reader.read() for _ in range(3)]
        now = await reader.look("offset=now")
        gate.open()
        await call
        reader.offset = "-1"
        again = [await reader.read() for _ in range(3)]

    for parts, is_over in ((found, False), (again, True)):
        assert sum(len(part.body) for part in parts) == size
        assert max(len(part.body) for part in parts) <= PAGE_BYTES
        assert [state(part)[2:] for part in parts] == [(False, False)] * 2 + [(True, is_over)]
    assert (state(now), now.headers("stream-next-offset")) == (
        (200, b"", True, False),
        found[-1].headers("stream-next-offset"),
    )


async def test_the_tail_of_what_is_over(url: str) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script(events("ab")))
    async with durable:
        reader = Reader(wrapped, await ask(wrapped))
        part = await reader.read()
        now = await reader.look("offset=now")
        head = await reader.look("", method="HEAD")
        head_of_part = await reader.look("offset=-1", method="HEAD")

    assert state(now) == (200, b"", True, True)
    for found in (now, head, head_of_part):
        assert (found.body, found.headers("stream-next-offset")) == (b"", [reader.offset])
    assert head_of_part.headers("content-length") == [str(len(part.body))]


async def test_a_part_that_is_known_is_not_sent_again(url: str) -> None:
    durable, gate, first = recording(url), Gate(), Exchange(b"")
    wrapped = durable.wrap(Script([event("a"), gate]))
    async with durable:
        call = begin(wrapped, first)
        await until(lambda: first.body)
        reader = Reader(wrapped, first)
        (etag,) = (await reader.read()).headers("etag")
        known = [("If-None-Match", f'"other", {etag}')]
        same = await reader.look("offset=-1", headers=known)
        now = await reader.look("offset=now", headers=known)
        gate.open()
        await call
        closed = await reader.look("offset=-1", headers=known)

    assert (same.status, same.body) == (304, b"")
    assert same.headers("stream-next-offset") == [reader.offset]
    assert (now.status, now.headers("etag")) == (200, [])
    assert (closed.status, closed.headers("stream-closed")) == (200, ["true"])


@pytest.mark.parametrize(
    "query",
    ["offset=", "offset=x", "offset=9", "offset=%FF", "offset=-1&offset=now", "offset={0}-999999"],
)
async def test_an_offset_that_is_none_is_refused(url: str, query: str) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script(events("ab")))
    async with durable:
        reader = Reader(wrapped, first := await ask(wrapped))
        found = await reader.look(query.format(last_id(first.body).partition("-")[0]))

    assert found.status == 400
    assert b"OFFSET_MALFORMED" in found.body


@pytest.mark.parametrize("mode", ["long-poll", "sse"])
async def test_live_reads_are_refused(url: str, mode: str) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script(events("ab")))
    async with durable:
        reader = Reader(wrapped, first := await ask(wrapped))
        found = await reader.look(f"offset=-1&live={mode}")
        without = await reader.look(f"live={mode}")

    assert (found.status, b"LIVE_NOT_SERVED" in found.body) == (400, True)
    assert without.body == first.body


@pytest.mark.parametrize("second", ["ax", "axyz", "a", "xb", ""])
async def test_events_that_were_replaced_are_taken_back(url: str, second: str) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script([*events("ab"), BROKEN], events(second)))
    client, other = Client(), Client()
    async with durable:
        reader = Reader(wrapped, await fail(wrapped))
        before = await reader.read()
        client.take(before.body)
        waiting = await reader.read()
        await ask(wrapped)
        while not (part := await reader.read()).headers("stream-closed"):
            client.take(part.body)
        client.take(part.body)
        other.take((await reader.look("offset=-1")).body)

    assert state(before) == (200, event("a") + event("b"), True, False)
    assert state(waiting) == (200, b"", True, False)
    assert (client.names, other.names) == (second, second)


@pytest.mark.parametrize("is_other_kind", [True, False])
async def test_a_read_behind_replaced_bytes_gets_a_410(url: str, is_other_kind: bool) -> None:
    durable, gate, first = recording(url), Gate(), Exchange(b"")
    app = Script(
        [b"one ", gate, b"two", BROKEN],
        [b"one ", b"three"],
        media_type=TEXT,
        statuses=[200, 201] if is_other_kind else [200],
    )
    wrapped = durable.wrap(app)
    async with durable:
        call = begin(wrapped, first)
        await until(lambda: first.body == b"one ")
        short = Reader(wrapped, first)
        await short.read()
        gate.open()
        with pytest.raises(LookupError):
            await call
        long = Reader(wrapped, first)
        before = await long.read()
        await ask(wrapped)
        gone, rest = await long.read(), await short.read()
        long.offset = "-1"
        again = await long.read()

    assert state(before) == (200, b"one two", True, False)
    assert (gone.status, b"OFFSET_GONE" in gone.body) == (410, True)
    if is_other_kind:
        assert rest.status == 410
    else:
        assert state(rest) == (200, b"three", True, True)
    assert state(again) == (200, b"one three", True, True)


@pytest.mark.parametrize("has_some", [True, False])
async def test_a_stream_that_is_replaced_between_two_reads(url: str, has_some: bool) -> None:
    here, there = (recording(url, max_response_body=1) for _ in range(2))
    app = Script([b"one ", b"two", BROKEN], [b"other"], media_type=TEXT, statuses=[200, 201])
    async with here, there:
        reader = Reader(there.wrap(app), await fail(here.wrap(app)))
        if has_some:
            await reader.read()
        storage, replaced = storage_of(there), asyncio.Event()
        read_chunks = storage.read_chunks

        async def read_late(workflow_id: str, after: int) -> list[ChunkRecord]:
            if after >= 0 and not replaced.is_set():
                replaced.set()
                await ask(here.wrap(app))
            return await read_chunks(workflow_id, after)

        storage.read_chunks = read_late  # type: ignore[method-assign]
        found, rest = await reader.read(), await reader.read()

    if has_some:
        assert (found.status, rest.status) == (410, 410)
    else:
        assert (state(found)[:2], state(rest)) == ((200, b"other"), (200, b"", True, True))


async def test_a_stream_that_has_just_expired_is_not_found(url: str) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script(events("ab")))
    async with durable:
        reader = Reader(wrapped, await ask(wrapped))
        storage = storage_of(durable)
        read_chunks = storage.read_chunks

        async def read_late(workflow_id: str, after: int) -> list[ChunkRecord]:
            if after >= 0:
                for table in ("pieces", "responses"):
                    await query(url, f"DELETE FROM asgi_durable_{table}")
            return await read_chunks(workflow_id, after)

        storage.read_chunks = read_late  # type: ignore[method-assign]
        found = await reader.read()

    assert found.status == 404


@pytest.mark.parametrize("first", [0, 1])
async def test_a_stream_that_is_too_long_has_no_parts(url: str, first: int) -> None:
    durable, gate, exchanged = recording(url, max_stream=20), Gate(), Exchange(b"")
    wrapped = durable.wrap(Script([event("a"), gate, event("b" * 20)]))
    async with durable:
        call = begin(wrapped, exchanged)
        await until(lambda: exchanged.body)
        reader = Reader(wrapped, exchanged)
        for _ in range(first):
            await reader.read()
        gate.open()
        await call
        found = await reader.read()

    assert (found.status, b"RESPONSE_NOT_KEPT" in found.body) == (410, True)


async def test_an_offset_of_another_stream_is_refused_with_410(url: str) -> None:
    durable = recording(url, max_response_body=1)
    wrapped = durable.wrap(Script([b"a", b"b"], media_type=TEXT))
    async with durable:
        reader = Reader(wrapped, await ask(wrapped))
        found = await reader.look("offset=1f-000000000000000001")

    assert (found.status, b"OFFSET_GONE" in found.body) == (410, True)


@pytest.mark.parametrize("media_type", [b"text/event-stream", TEXT])
@pytest.mark.parametrize("seed", range(10))
async def test_nobody_ever_mixes_two_versions(
    sqlite_url: str, seed: int, media_type: bytes
) -> None:
    chance, names = random.Random(seed), ""
    scripts: list[list[Item]] = []
    for _ in range(6):
        names = names[: chance.randrange(len(names) + 1)]
        names += "".join(chance.choice("xyz") for _ in range(chance.randrange(4)))
        pieces = [b"".join(events(names))] if chance.random() < 0.3 else events(names)
        scripts.append([*pieces, BROKEN])
    scripts.append(events(names + "end"))
    durable = recording(sqlite_url, max_response_body=1)
    wrapped = durable.wrap(Script(*scripts, media_type=media_type))
    clients = [Client() for _ in range(4)]
    async with durable:
        readers: list[Reader] = []
        for _ in scripts:
            call = begin(wrapped, exchanged := Exchange(b""))
            await asyncio.wait([call])
            call.exception()
            if not readers and exchanged.sent:
                readers = [Reader(wrapped, exchanged) for _ in clients]
            for client, reader in zip(clients, readers, strict=False):
                if chance.random() < 0.5:
                    await take_part(client, reader)
        for client, reader in zip(clients, readers, strict=True):
            while not await take_part(client, reader):
                pass

    assert [client.names for client in clients] == [names + "end"] * len(clients)


async def take_part(client: Client, reader: Reader) -> bool:
    """Read on, or anew if what the client has is void; return whether it has all."""
    found = await reader.read()
    if found.status == 410:
        reader.offset = "-1"
        client.__init__()  # type: ignore[misc]
    elif found.status == 200:
        client.take(found.body)
    return found.headers("stream-closed") == ["true"]


@pytest.mark.parametrize("offset", ["-1", "now", "x"])
async def test_nobody_reads_what_is_another_principals(url: str, offset: str) -> None:
    durable = recording(url)
    wrapped = durable.wrap(Script(events("ab")))
    async with durable:
        reader = Reader(wrapped, await ask(wrapped))
        found = await reader.look(
            f"offset={offset}", headers=[("authorization", "Bearer somebody else")]
        )

    assert found.status == 404
    assert found.headers("stream-next-offset") == []


async def test_what_is_no_recorded_stream_has_no_parts(url: str) -> None:
    durable = recording(url, stream_after=1000.0)
    wrapped = durable.wrap(Script([b"a", b"b"], media_type=TEXT))
    async with durable:
        reader = Reader(wrapped, await ask(wrapped))
        found = [await reader.look(query) for query in ("", "offset=-1", "offset=x")]

    assert [(one.status, one.body) for one in found] == [(200, b"ab")] * 3
    assert [one.headers("stream-next-offset") for one in found] == [[]] * 3


async def test_an_encoded_response_is_sent_whole(url: str) -> None:
    durable = recording(url)

    async def serve(scope, receive, send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": event("a")})

    wrapped = durable.wrap(serve)
    async with durable:
        reader = Reader(wrapped, first := await ask(wrapped))
        found = await reader.look("offset=-1")

    assert (found.body, found.headers("content-encoding")) == (first.body, ["gzip"])


async def test_what_was_cancelled_is_not_waited_for(url: str) -> None:
    durable, gate, first = recording(url, client_may_cancel=True), Gate(), Exchange(b"")
    wrapped = durable.wrap(Script([event("a"), gate]))
    async with durable:
        call = begin(wrapped, first)
        await until(lambda: first.body)
        reader = Reader(wrapped, first)
        await reader.read()
        page = http_scope("DELETE", reader.path.removesuffix("/result"))
        cancelled = await exchange(wrapped, page)
        await asyncio.wait([call])
        call.exception()
        found = await reader.read()

    assert (cancelled.status, found.status) == (204, 410)
    assert b"CANCELLED" in found.body


async def test_who_reads_parts_does_not_follow(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_FOLLOWERS_OF_ONE", 0)
    durable, gate, first = recording(url), Gate(), Exchange(b"")
    wrapped = durable.wrap(Script([event("a"), gate]))
    async with durable:
        call = begin(wrapped, first)
        await until(lambda: first.body)
        found = await Reader(wrapped, first).read()
        gate.open()
        await call

    assert state(found) == (200, event("a"), True, False)
