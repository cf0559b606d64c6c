"""Recorded streams whose rows were damaged: readers get an error, and none reads for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from support.asgi import Exchange, exchange, http_scope
from support.executors import query, until
from support.interruption import Gate
from support.processes.scripts import (
    Item,
    Script,
    ask,
    begin,
    event,
    events,
    recording,
    without_ids,
)

pytestmark = pytest.mark.anyio

PIECES = "asgi_durable_pieces"
# The start is at 0, and each of three events has nine bytes.
DAMAGES = {
    "a piece is missing": f"DELETE FROM {PIECES} WHERE end_offset = 18",
    "the last piece is missing": f"DELETE FROM {PIECES} WHERE end_offset = 27",
    "the start is missing": f"DELETE FROM {PIECES} WHERE end_offset = 0",
    "there is nothing left": f"DELETE FROM {PIECES}",
    "there are two starts": f"UPDATE {PIECES} SET cut_to = -1 WHERE end_offset = 18",
    "a cut cuts nothing": f"UPDATE {PIECES} SET cut_to = 3 WHERE end_offset = 18",
    "a piece is too long": f"UPDATE {PIECES} SET data = data || data WHERE end_offset = 18",
    "a piece is behind the end": f"UPDATE {PIECES} SET end_offset = 99 WHERE end_offset = 27",
    "the start is no start": f"UPDATE {PIECES} SET data = substr(data, 5) WHERE end_offset = 0",
}
BROKEN = LookupError("broken")


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture(params=DAMAGES)
def damage(request: pytest.FixtureRequest) -> str:
    return DAMAGES[request.param]


class Pieces(Script):
    """Sends events, each of which is recorded as a chunk of its own."""

    def __init__(self, *items: Item, then: Sequence[Item] | None = None) -> None:
        script: list[Item] = []
        for item in items:
            script += [item, Gate()] if isinstance(item, bytes) else [item]
        super().__init__(script, *([then] if then is not None else []))
        self._gates = [item for item in script if isinstance(item, Gate)]

    async def passed_by(self, exchanged: Exchange, pieces: int) -> None:
        """Let this many chunks be sent, one after the other."""
        for number, gate in enumerate(self._gates[:pieces], start=1):
            await until(lambda number=number: exchanged.body.count(b"data: ") >= number)
            gate.open()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines about responses; the rows themselves have one line besides."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelname == "ERROR" and not record.name.startswith("asgi_durable.storage")
    ]


def result_of(first: Exchange, where: str) -> dict[str, object]:
    path = f"/durable/requests/{first.headers('durable-id')[0]}/result"
    return http_scope("GET", path, query_string=where.encode())


async def test_every_reader_gets_an_error_if_the_response_is_damaged(
    url: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    durable = recording(url)
    app, first = Pieces(*events("abc")), Exchange(b"")
    wrapped = durable.wrap(app)
    async with durable, asyncio.timeout(60):
        call = begin(wrapped, first)
        await app.passed_by(first, 3)
        await call
        await query(url, damage)
        told = [await ask(wrapped)]
        told += [await exchange(wrapped, result_of(first, where)) for where in ("", "offset=-1")]

    (request_id,) = first.headers("durable-id")
    for answered in told:
        assert (answered.status, json.loads(answered.body)["code"]) == (500, "RESPONSE_DAMAGED")
        assert json.loads(answered.body)["retryable"] is False
    lines = errors(caplog)
    assert len(lines) == len(told)
    assert all(request_id in line for line in lines)
    assert app.calls == 1


async def test_damage_that_is_found_later_ends_the_response_unfinished(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    durable, first = recording(url), Exchange(b"")
    name = "a" * 200_000
    app = Pieces(event(name), event(name), event(name))
    wrapped = durable.wrap(app)
    async with durable, asyncio.timeout(60):
        call = begin(wrapped, first)
        await app.passed_by(first, 3)
        await call
        await query(url, f"DELETE FROM {PIECES} WHERE end_offset = {2 * len(event(name))}")
        again = await ask(wrapped)

    assert (again.status, without_ids(again.body), again.is_complete) == (200, event(name), False)
    assert len(errors(caplog)) == 1


async def test_who_follows_a_damaged_stream_is_left(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    durable, first = recording(url), Exchange(b"")
    app = Pieces(*events("abc"))
    wrapped = durable.wrap(app)
    async with durable, asyncio.timeout(60):
        call = begin(wrapped, first)
        await app.passed_by(first, 1)
        await until(lambda: without_ids(first.body) == b"".join(events("ab")))
        await query(url, f"DELETE FROM {PIECES} WHERE end_offset = 9")
        duplicate = await ask(wrapped)
        await app.passed_by(first, 3)
        await call

    assert (duplicate.body, duplicate.is_complete, first.is_complete) == (b"", False, True)
    assert len(errors(caplog)) == 1


async def test_a_retry_records_anew_what_is_damaged(url: str, damage: str) -> None:
    durable = recording(url)
    app, first = Pieces(*events("abc"), BROKEN, then=events("abcd")), Exchange(b"")
    wrapped = durable.wrap(app)
    async with durable, asyncio.timeout(60):
        call = begin(wrapped, first)
        await app.passed_by(first, 3)
        with pytest.raises(LookupError):
            await call
        await query(url, damage)
        again = await ask(wrapped)
        replayed = await ask(wrapped)

    assert without_ids(again.body) == without_ids(replayed.body) == b"".join(events("abcd"))
    assert (again.status, again.is_complete, replayed.is_complete) == (200, True, True)
