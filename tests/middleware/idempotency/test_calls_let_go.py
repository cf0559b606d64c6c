"""The server's call of a disconnected client ends, and the work continues without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from support.asgi import Exchange, answer, answered, exchange, http_scope, keyed, read_all
from support.executors import until
from support.interruption import Gate
from support.processes.scripts import without_ids
from support.telemetry.spans import Spans

from asgi_durable import Durable, IdempotencyMiddleware, IdempotencyPolicy
from asgi_durable.middleware.asgi import ASGIApp, Message, Scope

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 60.0
LONG = {"max_request_body": 2, "oversize": "hash"}


class Watched(Exchange):
    """An exchange that notes what it is asked for, and sent, once the server's call is over."""

    def __init__(self, *, chunks: list[bytes] | None = None) -> None:
        super().__init__(chunks=chunks or [b"order"])
        self.is_over = False
        self.late: list[str] = []

    async def receive(self) -> Message:
        self._note("receive")
        return await super().receive()

    async def send(self, message: Message) -> None:
        self._note(message["type"])
        await super().send(message)

    def begin(self, app: ASGIApp, scope: Scope | None = None) -> asyncio.Task[None]:
        """Send the request; one with a key, if no other is given."""
        return asyncio.create_task(self._call(app, keyed() if scope is None else scope))

    def _note(self, what: str) -> None:
        if self.is_over:
            self.late.append(what)

    async def _call(self, app: ASGIApp, scope: Scope) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await app(scope, self.receive, self.send)
        finally:
            self.is_over = True


class Shop:
    """An application that asks whether its client is there, waits at a gate, and responds.

    Attributes:
        gate: Where it waits.
        ended: The work that it has done after the gate.
    """

    def __init__(self, url: str, policy: IdempotencyPolicy | None = None, **options: object):
        self.durable = Durable(url, idempotency=policy, **options)  # type: ignore[arg-type]
        self.app: ASGIApp = self.durable.wrap(self.serve)
        self.gate = Gate()
        self.ended: list[str] = []

    async def serve(self, scope, receive, send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        await until_gone(request, self.gate)
        self.ended.append("answered")
        await answer(send, body + b" done")


async def until_gone(request: Request, gate: Gate) -> None:
    """Ask again and again whether the client has disconnected, until a gate opens."""
    waiting = asyncio.create_task(gate.wait())
    while not waiting.done():
        assert not await request.is_disconnected()
        await asyncio.sleep(0)


async def leave(shop: Shop, exchanged: Exchange, call: asyncio.Task[None]) -> None:
    """Let a client go that the application asks for, and return once its server's call is over."""
    await shop.gate.reached.wait()
    exchanged.disconnected.set()
    await call


@pytest.mark.parametrize(
    "policy",
    [
        IdempotencyPolicy(),
        IdempotencyPolicy(status_prefix=None),
        IdempotencyPolicy(async_after=3600.0),
        IdempotencyPolicy(single_transaction=True),
        IdempotencyPolicy(**LONG),
        IdempotencyPolicy(recover="server"),
        IdempotencyPolicy(stream="record"),
    ],
    ids=["default", "no pages", "async_after", "transaction", "long body", "server", "record"],
)
async def test_continued_work_is_recorded_and_the_retry_gets_it(
    database_url: str, policy: IdempotencyPolicy
) -> None:
    shop, exchanged = Shop(database_url, policy), Watched(chunks=[b"or", b"der"])
    async with shop.durable:
        await leave(shop, exchanged, exchanged.begin(shop.app))
        assert shop.ended == []
        shop.gate.open()
        await until(lambda: shop.ended)
        retry = await until(lambda: answered(lambda: exchange(shop.app, keyed(), b"order")))

    assert (retry.body, retry.headers("idempotent-replayed")) == (b"order done", ["true"])
    assert (exchanged.sent, exchanged.late, shop.ended) == ([], [], ["answered"])


@pytest.mark.parametrize("policy", [IdempotencyPolicy(), IdempotencyPolicy(**LONG)])
async def test_the_app_gets_the_disconnect_at_the_stop_and_the_retry_calls_it_again(
    database_url: str, policy: IdempotencyPolicy
) -> None:
    durable, told, begun = Durable(database_url, idempotency=policy), [], asyncio.Event()

    async def serve(scope, receive, send) -> None:
        body = await read_all(receive)
        begun.set()
        if not told:
            told.append((await receive())["type"])
        await answer(send, body)

    app, exchanged = durable.wrap(serve), Watched(chunks=[b"or", b"der"])
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with durable:
            call = exchanged.begin(app)
            await begun.wait()
            exchanged.disconnected.set()
            await call
            assert told == []
        assert told == ["http.disconnect"]
        async with durable:
            retry = await exchange(app, keyed(), b"order")

    assert (retry.body, retry.headers("idempotent-replayed")) == (b"order", [])
    assert exchanged.late == []


async def test_who_does_not_ask_for_its_client_is_waited_for(url: str) -> None:
    durable, gate, exchanged = Durable(url), Gate(), Watched()

    async def serve(scope, receive, send) -> None:
        await gate.wait()
        await answer(send, b"done")

    async with durable:
        call = exchanged.begin(durable.wrap(serve))
        await gate.reached.wait()
        exchanged.disconnected.set()
        await asyncio.wait([call], timeout=0.1)
        gate.open()
        await call

    assert (exchanged.body, exchanged.late) == (b"done", [])


async def test_a_client_that_is_there_is_waited_for(url: str) -> None:
    shop, exchanged = Shop(url), Watched()
    async with shop.durable:
        call = exchanged.begin(shop.app)
        await shop.gate.reached.wait()
        shop.gate.open()
        await call

    assert exchanged.body == b"order done"


async def test_a_duplicate_gets_the_response(url: str) -> None:
    shop, exchanged, duplicate = Shop(url, IdempotencyPolicy(max_wait=60.0)), Watched(), Watched()
    async with shop.durable:
        call = exchanged.begin(shop.app)
        await shop.gate.reached.wait()
        second = duplicate.begin(shop.app)
        await leave(shop, exchanged, call)
        shop.gate.open()
        await second

    assert (duplicate.body, duplicate.headers("idempotent-replayed")) == (b"order done", ["true"])


async def test_what_the_app_raises_later_is_logged(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop, exchanged = Shop(url), Watched()

    async def serve(scope, receive, send) -> None:
        await until_gone(Request(scope, receive), shop.gate)
        raise LookupError("no such order")

    app = shop.durable.wrap(serve)
    async with shop.durable:
        await leave(shop, exchanged, exchanged.begin(app, keyed(path="/orders")))
        shop.gate.open()
        logged = await until(lambda: [r for r in caplog.records if "POST" in r.getMessage()])

    assert [(record.levelno, bool(record.exc_info)) for record in logged] == [(logging.ERROR, True)]
    assert logged[0].getMessage().endswith("(POST /orders) failed; its client has disconnected")


async def test_what_the_app_has_raised_before_is_raised_to_the_server(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    durable, exchanged, listening = Durable(url), Watched(), []

    async def serve(scope, receive, send) -> None:
        await read_all(receive)
        listening.append(asyncio.create_task(receive()))
        await asyncio.sleep(0)
        # The listener has its turn while the request is left for its retry.
        exchanged.disconnected.set()
        raise LookupError

    app = IdempotencyMiddleware(serve, durable.engine)
    async with durable:
        with pytest.raises(LookupError):
            await exchanged.begin(app)
        assert not listening[0].done()
        listening[0].cancel()

    assert caplog.records == []


async def test_background_tasks_run(url: str) -> None:
    shop, exchanged, after = Shop(url), Watched(), Gate()

    async def follow() -> None:
        await after.wait()
        shop.ended.append("followed")

    async def serve(scope, receive, send) -> None:
        await until_gone(Request(scope, receive), shop.gate)
        await PlainTextResponse("done", background=BackgroundTask(follow))(scope, receive, send)

    app = shop.durable.wrap(serve)
    async with shop.durable:
        await leave(shop, exchanged, exchanged.begin(app))
        shop.gate.open()
        await after.reached.wait()
        retry = await exchange(app, keyed(), b"order")
        after.open()

    assert (retry.body, shop.ended, exchanged.late) == (b"done", ["followed"], [])


async def test_the_span_ends_with_the_call(url: str) -> None:
    spans, exchanged = Spans(), Watched()
    shop = Shop(url, telemetry=spans.telemetry)
    async with shop.durable:
        await leave(shop, exchanged, exchanged.begin(shop.app))
        (span,) = spans.ended
        shop.gate.open()
        await until(lambda: shop.ended)

    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 499
    assert span.status.is_unset
    assert [ended.name for ended in spans.ended] == ["POST"]


# Streams


class Stream:
    """A streaming response of Starlette's, which listens to its client and waits between chunks."""

    def __init__(self, url: str, media_type: str, policy: IdempotencyPolicy) -> None:
        self.durable = Durable(url, idempotency=policy)
        self.gate, self._media_type = Gate(), media_type
        self.app = self.durable.wrap(self.serve)

    async def serve(self, scope, receive, send) -> None:
        await read_all(receive)
        await StreamingResponse(self._pieces(), media_type=self._media_type)(scope, receive, send)

    async def _pieces(self) -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await self.gate.wait()
        yield b"data: 2\n\n"


WHOLE = b"data: 1\n\ndata: 2\n\n"
RECORD = IdempotencyPolicy(stream="record", max_wait=60.0)


async def test_nothing_is_lost_of_a_recorded_stream(database_url: str) -> None:
    stream = Stream(database_url, "text/event-stream", RECORD)
    exchanged, follower = Watched(), Watched()
    async with stream.durable:
        call = exchanged.begin(stream.app)
        await exchanged.answer_began.wait()
        following = follower.begin(stream.app)
        await follower.answer_began.wait()
        exchanged.disconnected.set()
        await call
        stream.gate.open()
        await following
        retry = await exchange(stream.app, keyed(), b"order")

    assert without_ids(follower.body) == without_ids(retry.body) == WHOLE
    assert (follower.is_complete, retry.is_complete) == (True, True)
    assert exchanged.late == []


async def test_a_stored_response_in_chunks_is_whole(database_url: str) -> None:
    policy = IdempotencyPolicy(stream_after=3600.0)
    stream, exchanged = Stream(database_url, "text/csv", policy), Watched()
    async with stream.durable:
        call = exchanged.begin(stream.app)
        await stream.gate.reached.wait()
        exchanged.disconnected.set()
        await call
        stream.gate.open()
        retry = await until(lambda: answered(lambda: exchange(stream.app, keyed(), b"order")))

    assert (retry.body, exchanged.sent, exchanged.late) == (WHOLE, [], [])


async def test_who_follows_a_stream_of_another_process_and_leaves_is_not_waited_for(
    database_url: str,
) -> None:
    await leave_a_followed_stream(database_url, lambda _: keyed())


async def test_who_follows_the_result_and_leaves_is_not_waited_for(database_url: str) -> None:
    def result_of(first: Exchange) -> Scope:
        (request_id,) = first.headers("durable-id")
        return http_scope(path=f"/durable/requests/{request_id}/result")

    await leave_a_followed_stream(database_url, result_of)


async def leave_a_followed_stream(url: str, scope_for: Callable[[Exchange], Scope]) -> None:
    here, there = (Stream(url, "text/event-stream", RECORD) for _ in range(2))
    first, follower = Watched(), Watched()
    async with here.durable, there.durable:
        call = first.begin(here.app)
        await first.answer_began.wait()
        following = follower.begin(there.app, scope_for(first))
        await follower.answer_began.wait()
        follower.disconnected.set()
        await following
        assert not call.done()
        here.gate.open()
        await call

    assert follower.headers("idempotent-replayed") == ["true"]
    assert (without_ids(follower.body), follower.is_complete) == (b"data: 1\n\n", False)
    assert (without_ids(first.body), first.is_complete) == (WHOLE, True)
    assert follower.late == []
