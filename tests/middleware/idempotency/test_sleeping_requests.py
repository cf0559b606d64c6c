"""Keyed requests that sleep: in workflows that they call, in threads, and beside other work."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable

import pytest
from support.asgi import Exchange, answer, exchange, keyed
from support.executors import PATIENCE_SECONDS, until
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp

pytestmark = pytest.mark.anyio

# So long that no test lives to see its end.
LONG_SECONDS = 36_000.0


def serving(durable: Durable, handle: Callable[[], Awaitable[object]]) -> ASGIApp:
    async def app(scope, receive, send) -> None:
        await answer(send, str(await handle()).encode())

    return durable.wrap(app)


async def test_a_workflow_that_the_handler_calls_may_sleep_for_it(database_url: str) -> None:
    durable = Durable(database_url, drain_timeout=LONG_SECONDS)

    @durable.workflow
    async def inner() -> None:
        await durable.sleep(LONG_SECONDS)

    @durable.workflow
    async def outer() -> None:
        await inner()

    app = serving(durable, outer)
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with durable:
            first, duplicate = [await exchange(app, keyed(), b"") for _ in range(2)]

    for one in (first, duplicate):
        assert (one.status, json.loads(one.body)["state"]) == (202, "SUSPENDED")


async def test_what_is_done_beside_a_sleep_keeps_its_client_waiting(url: str) -> None:
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def step() -> None:
        await gate.wait()

    async def handle() -> None:
        await asyncio.gather(durable.sleep(LONG_SECONDS), step())

    app = serving(durable, handle)
    async with durable:
        first = asyncio.create_task(exchange(app, keyed(), b""))
        await gate.reached.wait()
        duplicate = await exchange(app, keyed(headers=[("Prefer", "wait=0")]), b"")
        assert not first.done()
        gate.open()
        # From here on there is nothing but the sleep.
        told = await first

    assert duplicate.status == 409
    assert (told.status, json.loads(told.body)["state"]) == (202, "SUSPENDED")


async def test_a_response_that_has_begun_is_not_left(url: str) -> None:
    policy = IdempotencyPolicy(max_wait=0.0)
    durable = Durable(url, drain_timeout=0.0, idempotency=policy)

    async def app(scope, receive, send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await durable.sleep(0.05)
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    async with durable:
        streamed = await exchange(durable.wrap(app), keyed(), b"")

    assert (streamed.status, streamed.body) == (200, b"data: 1\n\ndata: 2\n\n")


async def test_a_client_that_leaves_may_end_the_sleep_of_a_thread(url: str) -> None:
    policy = IdempotencyPolicy(on_disconnect="cancel", status_prefix=None)
    durable = Durable(url, drain_timeout=0.0, idempotency=policy)
    ended = threading.Event()

    def sleep() -> None:
        try:
            durable.blocking.sleep(LONG_SECONDS)
        finally:
            ended.set()

    async def handle() -> None:
        await asyncio.to_thread(sleep)

    app, client = serving(durable, handle), Exchange(b"")
    async with durable:
        call = asyncio.create_task(app(keyed(), client.receive, client.send))
        await until(lambda: _sleeps(durable))
        client.disconnected.set()
        await call
        await until(ended.is_set)

    assert client.sent == []


def _sleeps(durable: Durable) -> bool:
    running = durable.engine._running
    assert running is not None
    return any(run.sleeping and run.sleeping.ends_us() for run in running.active._runs.values())
