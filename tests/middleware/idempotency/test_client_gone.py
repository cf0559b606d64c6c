"""Clients that go away, and what becomes of the work that they began."""

from __future__ import annotations

import asyncio
import logging

import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from support.asgi import Exchange, GoneExchange, answer, answered, exchange, keyed, read_all
from support.executors import note_calls, query, row_of, until
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp, Message

pytestmark = pytest.mark.anyio

CANCEL = IdempotencyPolicy(on_disconnect="cancel")


class Shop:
    """An application with two steps, of which the second waits at a gate.

    Attributes:
        ran: The step bodies that have begun, and what was cancelled.
    """

    def __init__(self, url: str, policy: IdempotencyPolicy = CANCEL) -> None:
        self.durable = durable = Durable(url, idempotency=policy, drain_timeout=0.0)
        self.app: ASGIApp = durable.wrap(self._serve)
        self.ran: list[str] = []
        self.gate = Gate()

        @durable.step
        async def step(name: str) -> str:
            self.ran.append(name)
            if name == "ship":
                await self.gate.wait()
            return name

        self.step = step

    def begin(self, exchanged: Exchange | None = None) -> asyncio.Task[None]:
        """Send the request."""
        exchanged = exchanged or Exchange(b"")
        return asyncio.create_task(self.app(keyed(), exchanged.receive, exchanged.send))

    async def post(self) -> Exchange:
        """Send the request, and open the gate for it."""
        self.gate.open()
        return await exchange(self.app, keyed(), b"")

    async def _serve(self, scope, receive, send) -> None:
        try:
            done = [await self.step("reserve"), await self.step("ship")]
        except asyncio.CancelledError:
            self.ran.append("cancelled")
            raise
        await answer(send, " ".join(done).encode())


# Where the client's leaving cancels the work


async def test_the_handler_is_cancelled_and_the_retry_continues_after_what_is_recorded(
    database_url: str,
) -> None:
    shop, exchanged = Shop(database_url), Exchange(b"")
    async with shop.durable:
        call = shop.begin(exchanged)
        await shop.gate.reached.wait()
        exchanged.disconnected.set()
        await call
        assert await is_free(database_url)
        retry = await shop.post()

    assert exchanged.sent == []
    assert (retry.status, retry.body) == (200, b"reserve ship")
    assert shop.ran == ["reserve", "ship", "cancelled", "ship"]


@pytest.mark.parametrize("how", ["leaves", "is cancelled"])
async def test_nothing_is_left_to_be_swept_up(url: str, how: str) -> None:
    shop, exchanged = Shop(url), Exchange(b"")
    async with shop.durable:
        running = shop.durable.engine._running
        assert running is not None
        call = shop.begin(exchanged)
        await shop.gate.reached.wait()
        if how == "leaves":
            exchanged.disconnected.set()
        else:
            call.cancel()
        await asyncio.wait([call])
        await until(lambda: is_free(url))
        await until(lambda: not running.active._runs)

        assert not running.recovery._wanted
        assert not running.recovery._is_sweeping()


async def is_free(url: str) -> bool:
    """Tell whether any process may resume the request."""
    return await query(url, "SELECT executor_id FROM asgi_durable_workflows") == [(None,)]


async def test_what_the_app_does_about_its_cancellation_is_not_recorded(url: str) -> None:
    shop, exchanged = Shop(url), Exchange(b"")

    async def serve(scope, receive, send) -> None:
        try:
            await shop.step("ship")
        except asyncio.CancelledError:
            await shop.step("undo")
            raise
        await shop.step("mail")
        await answer(send, b"done")

    shop.app = shop.durable.wrap(serve)
    async with shop.durable:
        call = shop.begin(exchanged)
        await shop.gate.reached.wait()
        exchanged.disconnected.set()
        await call
        assert await is_free(url)
        retry = await shop.post()

    assert (retry.status, retry.body) == (200, b"done")
    assert shop.ran == ["ship", "ship", "mail"]


@pytest.mark.parametrize("how", ["answers", "raises"])
async def test_an_app_that_ignores_its_cancellation_gets_another_attempt(
    url: str, how: str
) -> None:
    shop, exchanged = Shop(url), Exchange(b"")

    async def serve(scope, receive, send) -> None:
        try:
            await shop.step("ship")
        except asyncio.CancelledError:
            if how == "raises":
                raise LookupError from None
            await answer(send, b"cancelled")
        else:
            await answer(send, b"done")

    shop.app = shop.durable.wrap(serve)
    async with shop.durable:
        call = shop.begin(exchanged)
        await shop.gate.reached.wait()
        exchanged.disconnected.set()
        # The error is the server's to log, as ever.
        await asyncio.gather(call, return_exceptions=True)

        assert (await until(lambda: answered(shop.post))).body == b"done"
    assert exchanged.sent == []


async def test_a_response_that_is_being_committed_is_stored_and_what_follows_it_runs(
    url: str,
) -> None:
    shop, exchanged, after = Shop(url), Exchange(b""), []

    async def serve(scope, receive, send) -> None:
        exchanged.disconnected.set()
        await answer(send, b"done")
        # The disconnect was noticed while the response was being committed.
        after.append("mail")

    shop.app = shop.durable.wrap(serve)
    async with shop.durable:
        await shop.begin(exchanged)
        retry = await shop.post()

    assert (retry.body, retry.headers("idempotent-replayed")) == (b"done", ["true"])
    assert after == ["mail"]


async def test_a_server_that_cancels_the_request_cancels_the_handler(url: str) -> None:
    shop, exchanged = Shop(url), Exchange(b"")
    async with shop.durable:
        call = shop.begin(exchanged)
        await shop.gate.reached.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: "cancelled" in shop.ran)
        retry = await until(lambda: answered(shop.post))

    assert (retry.body, exchanged.sent) == (b"reserve ship", [])
    assert shop.ran == ["reserve", "ship", "cancelled", "ship"]


async def test_a_duplicate_that_took_over_is_cancelled_too_once_it_disconnects(url: str) -> None:
    shop, first, second = Shop(url), Exchange(b""), Exchange(b"")
    async with shop.durable:
        call = shop.begin(first)
        await shop.gate.reached.wait()
        duplicate = shop.begin(second)
        await until(lambda: waiting_duplicates(shop.durable) == 1)
        second.disconnected.set()
        first.disconnected.set()
        await asyncio.gather(call, duplicate)
        retry = await shop.post()

    assert (first.sent, second.sent) == ([], [])
    assert retry.body == b"reserve ship"
    assert shop.ran.count("reserve") == 1


def waiting_duplicates(durable: Durable) -> int:
    running = durable.engine._running
    assert running is not None
    return running.requests._duplicates.total()


async def test_a_client_that_got_a_location_may_disconnect(url: str) -> None:
    policy = IdempotencyPolicy(on_disconnect="cancel", async_after=0.0)
    shop, exchanged = Shop(url, policy), Exchange(b"")
    async with shop.durable:
        await shop.begin(exchanged)
        exchanged.disconnected.set()
        await shop.gate.reached.wait()
        shop.gate.open()
        (request_id,) = exchanged.headers("durable-id")
        await until(lambda: is_finished(url, request_id))

    assert exchanged.status == 202
    assert shop.ran == ["reserve", "ship"]


async def is_finished(url: str, request_id: str) -> bool:
    return await row_of(url, request_id, "state") == ("SUCCESS",)


async def test_a_background_task_is_not_cancelled(url: str) -> None:
    durable, gate, done = Durable(url, idempotency=CANCEL), Gate(), []

    async def follow() -> None:
        await gate.wait()
        done.append("followed")

    app = durable.wrap(PlainTextResponse("done", background=BackgroundTask(follow)))
    exchanged = Exchange(b"")
    async with durable:
        call = asyncio.create_task(app(keyed(), exchanged.receive, exchanged.send))
        await gate.reached.wait()
        exchanged.disconnected.set()
        await asyncio.wait([call], timeout=0.1)
        gate.open()
        await call

    assert (exchanged.body, done) == (b"done", ["followed"])


# The server's log


async def test_a_response_that_nobody_receives_is_stored_without_an_error(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    durable, exchanged, after = Durable(url), GoneExchange(b""), []

    async def serve(scope, receive, send) -> None:
        exchanged.disconnected.set()
        await answer(send, b"done")
        after.append("mail")

    app = durable.wrap(serve)
    async with durable:
        with caplog.at_level(logging.WARNING):
            await app(keyed(), exchanged.receive, exchanged.send)
        retry = await exchange(app, keyed())

    assert (retry.body, retry.headers("idempotent-replayed")) == (b"done", ["true"])
    assert (after, caplog.records) == (["mail"], [])


async def test_an_error_of_the_server_about_the_last_chunk_undoes_nothing(url: str) -> None:
    durable, exchanged, calls = Durable(url), Exchange(b""), []

    async def serve(scope, receive, send) -> None:
        calls.append(1)
        await answer(send, b"done")

    async def send(message) -> None:
        if message["type"] == "http.response.body":
            raise RuntimeError("longer than announced")

    app = durable.wrap(serve)
    async with durable:
        commits = note_calls(durable, "commit")
        with pytest.raises(RuntimeError):
            await app(keyed(), exchanged.receive, send)
        claim_and_answer = len(commits)
        retry = await exchange(app, keyed())

    assert (retry.body, calls) == (b"done", [1])
    assert claim_and_answer == 2


async def test_a_disconnect_that_the_server_reports_once_is_not_lost(durable: Durable) -> None:
    queue: asyncio.Queue[Message] = asyncio.Queue()
    for message in ({"type": "http.request", "body": b""}, {"type": "http.disconnect"}):
        queue.put_nowait(message)
    told: list[Message] = []

    async def serve(scope, receive, send) -> None:
        await read_all(receive)
        polled = asyncio.create_task(receive())
        await until(queue.empty)
        polled.cancel()
        await answer(send, b"done")
        told.extend(await asyncio.gather(receive(), receive()))

    async with asyncio.timeout(60):
        await durable.wrap(serve)(keyed(), queue.get, Exchange(b"").send)
        await until(lambda: told)

    assert told == [{"type": "http.disconnect"}] * 2


async def test_all_listeners_get_the_disconnect(url: str) -> None:
    durable, exchanged, told = Durable(url, idempotency=CANCEL), Exchange(b""), []

    async def serve(scope, receive, send) -> None:
        await read_all(receive)
        await answer(send, b"done")
        exchanged.disconnected.set()
        told.extend(await asyncio.gather(receive(), receive()))

    async with durable, asyncio.timeout(60):
        await durable.wrap(serve)(keyed(), exchanged.receive, exchanged.send)

    assert told == [{"type": "http.disconnect"}] * 2


async def test_a_request_that_is_cancelled_before_its_body_is_read_leaves_nothing(
    url: str,
) -> None:
    shop, reading = Shop(url, IdempotencyPolicy()), Gate()

    async def receive() -> Message:
        await reading.wait()
        raise AssertionError

    async with shop.durable:
        call = asyncio.create_task(shop.app(keyed(), receive, Exchange(b"").send))
        await reading.reached.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        retry = await shop.post()

    assert (retry.headers("idempotent-replayed"), shop.ran) == ([], ["reserve", "ship"])


async def test_a_duplicate_that_is_cancelled_leaves_the_first_one_alone(url: str) -> None:
    shop, first, second = Shop(url), Exchange(b""), Exchange(b"")
    async with shop.durable:
        call = shop.begin(first)
        await shop.gate.reached.wait()
        duplicate = shop.begin(second)
        await until(lambda: waiting_duplicates(shop.durable) == 1)
        duplicate.cancel()
        await asyncio.wait([duplicate])
        left = waiting_duplicates(shop.durable)
        shop.gate.open()
        await call

    assert (first.body, second.sent, left) == (b"reserve ship", [], 0)


# Where the engine stops


@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_stop_reports_an_app_the_disconnect_of_its_client(url: str, when: str) -> None:
    gate, bodies = Gate(), []
    durable = Durable(url, drain_timeout=60.0)

    async def serve(scope, receive, send) -> None:
        bodies.append(await read_all(receive))
        if len(bodies) > 1:
            await answer(send, b"all of it")
            return
        gate.reached.set()
        assert (await receive())["type"] == "http.disconnect"
        await answer(send, b"a part")

    app, exchanged = durable.wrap(serve), Exchange(b"order")
    async with asyncio.timeout(50):
        async with durable:
            call = asyncio.create_task(app(keyed(), exchanged.receive, exchanged.send))
            await gate.reached.wait()
            stopping = None
            if when == "during":
                stopping = asyncio.create_task(durable.engine.drain())
                await asyncio.sleep(0)
                assert not call.done()
            exchanged.disconnected.set()
            if stopping is not None:
                await stopping
        await asyncio.wait([call])
        async with durable:
            retry = await exchange(app, keyed(), b"order")

    assert (retry.body, retry.headers("idempotent-replayed")) == (b"all of it", [])
    assert bodies == [b"order", b"order"]


async def test_a_handler_that_polls_for_its_client_does_not_hang_the_stop(url: str) -> None:
    durable, begun = Durable(url, drain_timeout=60.0), asyncio.Event()

    async def serve(scope, receive, send) -> None:
        request = Request(scope, receive)
        await request.body()
        begun.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0)

    app, exchanged = durable.wrap(serve), Exchange(b"")
    async with asyncio.timeout(50):
        async with durable:
            call = asyncio.create_task(app(keyed(), exchanged.receive, exchanged.send))
            await begun.wait()
            exchanged.disconnected.set()
        await asyncio.wait([call])


async def test_a_stop_invents_no_leaving_of_a_client(url: str) -> None:
    durable, begun, gate = Durable(url, drain_timeout=60.0), asyncio.Event(), asyncio.Event()

    async def serve(scope, receive, send) -> None:
        await read_all(receive)
        listening = asyncio.create_task(receive())
        begun.set()
        await gate.wait()
        assert not listening.done()
        listening.cancel()
        await answer(send, b"done")

    app, exchanged = durable.wrap(serve), Exchange(b"")
    async with durable:
        call = asyncio.create_task(app(keyed(), exchanged.receive, exchanged.send))
        await begun.wait()
        stopping = asyncio.create_task(durable.engine.drain())
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(call, stopping)

    assert exchanged.body == b"done"


async def test_an_event_stream_that_is_not_recorded_hears_of_its_client(url: str) -> None:
    durable, ended = Durable(url), []

    async def events():
        yield "data: 1\n\n"
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("stream")

    app = durable.wrap(StreamingResponse(events(), media_type="text/event-stream"))
    exchanged = Exchange(b"")
    async with durable, asyncio.timeout(60):
        call = asyncio.create_task(app(keyed(), exchanged.receive, exchanged.send))
        await exchanged.answer_began.wait()
        exchanged.disconnected.set()
        await asyncio.wait([call])

    assert ended == ["stream"]
