"""A request whose executor was declared dead while it ran, begun again in the same connection."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from support.asgi import Exchange, answer, exchange, keyed, read_all
from support.executors import declared_dead, executor_of, is_another
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def executor(url: str, **policy: object) -> Durable:
    return Durable(url, idempotency=IdempotencyPolicy(**policy), drain_timeout=0.0)


async def declare_dead(durable: Durable) -> None:
    """Let another executor find this one dead, and wait until it has noticed."""
    old_id = executor_of(durable).id
    async with declared_dead(durable):
        pass
    await is_another(durable, old_id)


async def test_the_app_gets_the_request_again_as_it_was(url: str) -> None:
    here, there, gate, bodies = executor(url), executor(url), Gate(), []

    async def order(request: Request) -> Response:
        bodies.append(await request.body())
        request.scope["path"] = "/changed"
        await gate.wait()
        return PlainTextResponse(request.path_params["name"])

    route = Route("/{name}", order, methods=["POST"])
    app = here.wrap(Starlette(routes=[Mount("/api", routes=[route])]))
    async with here, there:
        request = asyncio.create_task(exchange(app, keyed(path="/api/book"), b"{}"))
        await gate.reached.wait()
        await declare_dead(here)
        gate.open()
        result = await request
        again = await exchange(app, keyed(path="/api/book"), b"{}")

    assert (result.status, result.body, result.is_complete) == (200, b"book", True)
    assert bodies == [b"{}", b"{}"]
    assert (again.body, again.headers("idempotent-replayed")) == (b"book", ["true"])


async def test_a_disconnected_request_is_not_begun_again(url: str) -> None:
    here, there, gate, calls = executor(url), executor(url), Gate(), []

    async def serve(scope, receive, send) -> None:
        calls.append(1)
        await gate.wait()
        await answer(send, b"served")

    wrapped, exchanged = here.wrap(serve), Exchange(b"")
    async with here, there:
        call = asyncio.create_task(wrapped(keyed(), exchanged.receive, exchanged.send))
        await gate.reached.wait()
        call.cancel()
        await asyncio.wait([call])
        await declare_dead(here)
        gate.open()
        retry = await exchange(wrapped, keyed())

    assert (exchanged.sent, retry.body, len(calls)) == ([], b"served", 2)


async def test_a_void_response_is_not_shown_beside_the_valid_one(url: str) -> None:
    here, there, gate, calls = executor(url), executor(url), Gate(), []

    async def serve(scope, receive, send) -> None:
        calls.append("here")
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await gate.wait()
        await answer(send, b"void")

    async def serve_there(scope, receive, send) -> None:
        calls.append("there")
        await answer(send, await read_all(receive))

    async with here, there:
        request = asyncio.create_task(exchange(here.wrap(serve), keyed(), b"{}"))
        await gate.reached.wait()
        async with declared_dead(here):
            stands = await exchange(there.wrap(serve_there), keyed(), b"{}")
            gate.open()
        late = await request

    assert (stands.body, late.body, late.is_complete) == (b"{}", b"{}", True)
    assert late.headers("idempotent-replayed") == ["true"]
    assert calls == ["here", "there"]


async def test_a_request_that_is_lost_again_and_again_is_to_come_back(url: str) -> None:
    here, there, gates = executor(url, max_wait=0.0), executor(url), [Gate(), Gate()]
    calls: list[int] = []

    async def serve(scope, receive, send) -> None:
        calls.append(1)
        if len(calls) <= len(gates):
            await gates[len(calls) - 1].wait()
        await answer(send, b"served")

    wrapped = here.wrap(serve)
    async with here, there:
        request = asyncio.create_task(exchange(wrapped, keyed()))
        for gate in gates:
            await gate.reached.wait()
            await declare_dead(here)
            gate.open()
        late = await request
        retry = await exchange(wrapped, keyed())

    assert (late.status, late.headers("retry-after")) == (503, ["1"])
    assert (retry.body, len(calls)) == (b"served", 3)


@pytest.mark.parametrize("seconds", [0.0, 0.3])
async def test_a_process_that_cannot_claim_reports_it_in_time(url: str, seconds: float) -> None:
    here, there, calls = executor(url, max_wait=seconds), executor(url), []

    async def serve(scope, receive, send) -> None:
        calls.append(1)
        await answer(send, b"served")

    app = here.wrap(serve)
    async with here, there:
        old_id = executor_of(here).id
        async with declared_dead(here):
            began_at = asyncio.get_running_loop().time()
            refused = await exchange(app, keyed())
            took = asyncio.get_running_loop().time() - began_at
        await is_another(here, old_id)
        retry = await exchange(app, keyed())

    assert (refused.status, refused.headers("retry-after")) == (503, ["1"])
    # At most half of the storage retry timeout, which it was before.
    assert seconds <= took < 15
    assert (retry.body, len(calls)) == (b"served", 1)


async def test_nobody_waits_longer_for_another_executor_than_is_allowed(url: str) -> None:
    here, there = executor(url, max_wait=0.2), executor(url)
    gate, elsewhere = Gate(), Gate()

    async def serve(scope, receive, send) -> None:
        await gate.wait()
        await answer(send, b"void")

    async def serve_there(scope, receive, send) -> None:
        await elsewhere.wait()
        await answer(send, b"there")

    async with here, there:
        request = asyncio.create_task(exchange(here.wrap(serve), keyed()))
        await gate.reached.wait()
        async with declared_dead(here):
            other = asyncio.create_task(exchange(there.wrap(serve_there), keyed()))
            await elsewhere.reached.wait()
            gate.open()
        late = await request
        elsewhere.open()

        assert (late.status, late.headers("retry-after")) == (409, ["1"])
        assert (await other).body == b"there"
