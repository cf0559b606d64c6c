"""How much of the disk the long bodies of duplicates may take, and that it is given back."""

from __future__ import annotations

import asyncio
import json

import pytest
from middleware.bodies.test_long_bodies import (
    LIMIT,
    LONG,
    OTHER,
    Sender,
    Upload,
    code_of,
    is_waited_for,
)
from support.asgi import answer, keyed, read_all
from support.executors import until
from support.interruption import Gate

from asgi_durable import Durable, DurableError, DurableUsageError, IdempotencyPolicy

pytestmark = pytest.mark.anyio

LENGTH = len(b"".join(LONG))
FAILURE = DurableError("once", status_code=503)


def used_bytes(durable: Durable) -> int:
    return durable.engine.requests.spool.used_bytes


async def test_beyond_the_limit_a_duplicate_is_to_come_back(url: str) -> None:
    upload, slow = Upload(url, max_spooled=LENGTH + LIMIT), Sender()
    upload.fails, slow.gate = FAILURE, Gate()
    async with upload.durable, asyncio.timeout(60):
        await upload.post()
        upload.fails = None
        sending = asyncio.create_task(upload.post(sender=slow))
        await slow.gate.reached.wait()
        refused = await upload.post()
        slow.gate.open()
        await sending
        used, again = used_bytes(upload.durable), await upload.post()

    assert (refused.status, code_of(refused)) == (503, "SPOOL_FULL")
    assert json.loads(refused.body)["retryable"] is True
    assert refused.headers("retry-after") == ["1"]
    assert (slow.status, again.body, used) == (200, slow.body, 0)
    assert upload.ran == ["begin", f"keep {LENGTH}"]


async def test_a_body_for_which_there_never_is_room_is_too_large(url: str) -> None:
    upload = Upload(url, max_spooled=LENGTH - 1)
    upload.fails = FAILURE
    async with upload.durable:
        await upload.post()
        refused = await upload.post()
        used = used_bytes(upload.durable)

    assert (refused.status, code_of(refused), used) == (413, "BODY_TOO_LARGE", 0)
    assert "max_spooled" in json.loads(refused.body)["detail"]


async def test_what_is_compared_with_a_finished_request_needs_no_room(url: str) -> None:
    upload = Upload(url, max_spooled=0)
    async with upload.durable:
        first, again = [await upload.post() for _ in range(2)]

    assert (again.status, again.body) == (200, first.body)


async def test_room_is_given_back_by_a_refusal_a_disconnect_and_a_failure(url: str) -> None:
    upload, leaving = Upload(url), Sender()
    upload.fails, leaving.leaves = FAILURE, True
    used = []
    async with upload.durable:
        await upload.post()
        for send in (
            lambda: upload.post(OTHER),
            lambda: upload.post(sender=leaving),
            upload.post,
        ):
            await send()
            used.append(used_bytes(upload.durable))

    assert used == [0, 0, 0]


async def test_room_is_given_back_where_the_server_gives_the_connection_up(url: str) -> None:
    durable = Durable(
        url, idempotency=IdempotencyPolicy(oversize="hash", max_request_body=LIMIT, max_wait=60.0)
    )
    gate = Gate()

    @durable.step
    async def wait() -> None:
        await gate.wait()

    async def serve(scope, receive, send) -> None:
        body = await read_all(receive)
        await wait()
        await answer(send, str(len(body)).encode())

    app = durable.wrap(serve)
    slow = Sender()
    slow.gate = Gate()

    def begin(sender: Sender) -> asyncio.Task[None]:
        return asyncio.create_task(app(keyed(), sender.receive, sender.send))

    async with durable, asyncio.timeout(60):
        running = begin(Sender())
        await gate.reached.wait()
        reading = begin(slow)
        await slow.gate.reached.wait()
        waiting = begin(Sender())
        await until(lambda: is_waited_for(durable))
        await until(lambda: used_bytes(durable) == 2 * LENGTH - len(LONG[-1]))
        calls = [reading, waiting]
        # Servers keep no call that is over, and so no traceback of it.
        del reading, waiting
        while calls:
            calls[-1].cancel()
            await asyncio.wait(calls[-1:])
            calls.pop()
        await until(lambda: used_bytes(durable) == 0)
        gate.open()
        await running


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(DurableUsageError, match="max_spooled"):
        IdempotencyPolicy(max_spooled=-1)
