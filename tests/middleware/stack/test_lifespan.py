"""The engine's life around the app's lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from support.asgi import answer, exchange, http_scope
from support.executors import end_lease, executor_of, kill, query

from asgi_durable import Durable, LifespanMiddleware, StorageError, StorageUnavailableError
from asgi_durable.engine.process import executor
from asgi_durable.storage.protocol import Storage

pytestmark = pytest.mark.anyio


class Engine:
    """Notes what the lifespan does to it, in order with what the app does."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.log: list[str] = []
        self._error = error

    async def start(self) -> None:
        self.log.append("engine starts")
        if self._error is not None:
            raise self._error

    async def ensure_started(self) -> None:
        self.log.append("engine ensures")
        if self._error is not None:
            raise self._error

    def recover(self) -> None:
        self.log.append("engine recovers")

    async def drain(self) -> None:
        self.log.append("engine drains")

    async def stop(self) -> None:
        self.log.append("engine stops")


class Server:
    """The server's side of a lifespan."""

    def __init__(self, messages: Iterable[str] = ("startup", "shutdown")) -> None:
        self._messages = list(messages)
        self.sent: list[dict[str, object]] = []

    async def receive(self) -> dict[str, object]:
        if not self._messages:
            await asyncio.Event().wait()
        return {"type": f"lifespan.{self._messages.pop(0)}"}

    async def send(self, message) -> None:
        self.sent.append(message)

    @property
    def types(self) -> list[object]:
        return [message["type"] for message in self.sent]

    async def run(self, app) -> None:
        async with asyncio.timeout(30):
            await app({"type": "lifespan"}, self.receive, self.send)


def app_with_lifespan(engine: Engine):
    async def app(scope, receive, send) -> None:
        assert scope["asgi"]
        assert (await receive())["type"] == "lifespan.startup"
        engine.log.append("app starts")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        engine.log.append("app stops")
        await send({"type": "lifespan.shutdown.complete"})

    return app


LIVING = "SELECT executor_id FROM asgi_durable_executors WHERE state = 'ALIVE'"
COMPLETE = ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_the_engine_lives_around_the_app() -> None:
    engine, server = Engine(), Server()

    await server.run(LifespanMiddleware(app_with_lifespan(engine), engine))

    assert engine.log == [
        "engine starts",
        "app starts",
        "engine recovers",
        "engine drains",
        "app stops",
        "engine stops",
    ]
    assert server.types == COMPLETE


async def raises_at_once(scope, receive, send) -> None:
    raise TypeError(scope["type"])


async def returns_at_once(scope, receive, send) -> None:
    return


async def returns_after_startup(scope, receive, send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize("app", [raises_at_once, returns_at_once, returns_after_startup])
async def test_an_app_without_lifespan_support_works(app) -> None:
    engine, server = Engine(), Server()

    await server.run(LifespanMiddleware(app, engine))

    assert engine.log == ["engine starts", "engine recovers", "engine drains", "engine stops"]
    assert server.types == COMPLETE


async def test_a_database_that_cannot_be_opened_fails_the_start_with_a_sentence() -> None:
    engine, server = Engine(error=StorageError("orders.db: no room")), Server()

    with pytest.raises(StorageError):
        await server.run(LifespanMiddleware(app_with_lifespan(engine), engine))

    assert server.sent == [{"type": "lifespan.startup.failed", "message": "orders.db: no room"}]
    assert engine.log == ["engine starts"]


async def test_any_error_fails_the_start() -> None:
    engine, server = Engine(error=OSError("name too long")), Server()

    with pytest.raises(OSError, match="name too long"):
        await server.run(LifespanMiddleware(app_with_lifespan(engine), engine))
    result = await exchange(LifespanMiddleware(returns_at_once, engine), http_scope())

    assert server.types == ["lifespan.startup.failed"]
    assert result.status == 500
    assert b"name too long" not in result.body


async def test_an_app_that_fails_to_start_stops_the_engine() -> None:
    engine, server = Engine(), Server()

    async def app(scope, receive, send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        await server.run(LifespanMiddleware(app, engine))

    assert engine.log == ["engine starts", "engine stops"]
    assert server.types == ["lifespan.startup.failed"]


async def test_what_an_app_raises_after_it_received_its_startup_fails_the_start() -> None:
    engine, server = Engine(), Server()

    async def app(scope, receive, send) -> None:
        await receive()
        raise LookupError("no such setting")

    with pytest.raises(LookupError):
        await server.run(LifespanMiddleware(app, engine))

    assert engine.log == ["engine starts", "engine stops"]
    message = "LookupError: no such setting"
    assert server.sent == [{"type": "lifespan.startup.failed", "message": message}]


@pytest.mark.parametrize("failed", ["startup", "shutdown"])
async def test_nothing_is_awaited_once_a_server_knows_of_a_failure(failed: str) -> None:
    engine, server = Engine(), Server()

    async def app(scope, receive, send) -> None:
        for event in ("startup", "shutdown"):
            await receive()
            kind = "failed" if event == failed else "complete"
            await send({"type": f"lifespan.{event}.{kind}"})

    async def send(message) -> None:
        await server.send(message)
        if message["type"].endswith("failed"):
            assert engine.log[-1] == "engine stops"
            raise RuntimeError("as some servers do")

    with pytest.raises(RuntimeError, match="as some servers do"):
        await LifespanMiddleware(app, engine)({"type": "lifespan"}, server.receive, send)

    assert engine.log.count("engine stops") == 1


async def test_an_app_that_fails_to_stop_still_stops_the_engine() -> None:
    engine, server = Engine(), Server()

    async def app(scope, receive, send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "no"})

    await server.run(LifespanMiddleware(app, engine))

    assert engine.log[-1] == "engine stops"
    assert server.types == ["lifespan.startup.complete", "lifespan.shutdown.failed"]


async def test_requests_start_the_engine_where_no_lifespan_does() -> None:
    engine = Engine()

    async def app(scope, receive, send) -> None:
        await answer(send)

    result = await exchange(LifespanMiddleware(app, engine), http_scope())

    assert result.status == 200
    assert engine.log == ["engine ensures"]


async def test_a_request_that_cannot_start_the_engine_gets_an_error_without_internals() -> None:
    engine = Engine(error=StorageError("/data/orders.db: no room"))

    result = await exchange(LifespanMiddleware(returns_at_once, engine), http_scope())

    assert result.status == 500
    assert b"orders.db" not in result.body


async def test_the_app_may_call_workflows_in_its_own_startup_and_shutdown(url: str) -> None:
    durable = Durable(url)
    results = []

    @durable.step
    async def step(name: str) -> str:
        return name

    @durable.workflow
    async def work(name: str) -> str:
        return await step(name)

    async def app(scope, receive, send) -> None:
        await receive()
        results.append(await work("startup"))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        results.append(await work("shutdown"))
        await send({"type": "lifespan.shutdown.complete"})

    server = Server()
    await server.run(durable.wrap(app))

    assert results == ["startup", "shutdown"]
    assert server.types == COMPLETE


async def test_interrupted_work_finds_what_the_app_opened(url: str) -> None:
    durable = Durable(url, drain_timeout=0.0)
    opened: list[str] = []
    finished = asyncio.Event()
    held = asyncio.Event()

    @durable.workflow
    async def work() -> str:
        if not opened:
            held.set()
            await asyncio.Event().wait()
        finished.set()
        return opened[0]

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await held.wait()

    async def app(scope, receive, send) -> None:
        await receive()
        await asyncio.sleep(0)
        opened.append("resource")
        await send({"type": "lifespan.startup.complete"})
        await finished.wait()
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    await Server().run(durable.wrap(app))

    async with durable:
        assert await (await durable.retrieve_workflow("w")).get_result() == "resource"


def test_a_new_event_loop_for_each_request_is_served(url: str) -> None:
    """As a test client without a ``with`` block does."""
    durable = Durable(url)
    runs: list[str] = []

    @durable.step
    async def step(name: str) -> str:
        runs.append(name)
        return name

    @durable.workflow
    async def work(name: str) -> str:
        return await step(name)

    async def app(scope, receive, send) -> None:
        await answer(send, (await work(scope["path"])).encode())

    wrapped = durable.wrap(app)
    bodies = [
        asyncio.run(exchange(wrapped, http_scope(path=f"/{number}"))).body for number in range(3)
    ]
    asyncio.run(durable.engine.stop())

    assert bodies == [b"/0", b"/1", b"/2"]
    assert runs == ["/0", "/1", "/2"]


def test_work_left_on_an_event_loop_that_ended_continues_at_the_next_request(url: str) -> None:
    durable = Durable(url)
    may_end = False

    @durable.step
    async def step(number: int) -> int:
        if number == 1 and not may_end:
            await asyncio.Event().wait()
        return number

    @durable.workflow
    async def work() -> list[int]:
        return [await step(0), await step(1)]

    async def app(scope, receive, send) -> None:
        if scope["path"] == "/start":
            await durable.options(workflow_id="w").start_workflow(work)
            await answer(send)
        else:
            handle = await durable.retrieve_workflow("w")
            await answer(send, str(await handle.get_result(timeout=60)).encode())

    wrapped = durable.wrap(app)
    asyncio.run(exchange(wrapped, http_scope(path="/start")))
    may_end = True
    result = asyncio.run(exchange(wrapped, http_scope(path="/result")))
    asyncio.run(durable.engine.stop())

    assert result.body == b"[0, 1]"


async def test_dead_executors_are_looked_for_before_the_first_request_is_served(
    database_url: str,
) -> None:
    killed, durable = Durable(database_url), Durable(database_url)
    await killed.engine.start()
    killed_id = executor_of(killed).id
    await kill(killed)
    await end_lease(database_url, killed_id)
    living: list[tuple[object, ...]] = []

    async def app(scope, receive, send) -> None:
        living.extend(await query(database_url, LIVING))
        await answer(send)

    wrapped = durable.wrap(app)
    try:
        await exchange(wrapped, http_scope())
        assert living == [(executor_of(durable).id,)]
    finally:
        await durable.engine.stop()


@pytest.mark.parametrize("answers", [True, False])
async def test_a_database_that_does_not_reply_keeps_no_request_waiting(
    url: str, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    if not answers:
        monkeypatch.setattr(executor, "FIRST_LOOK_SECONDS", 0.05)
    durable, called = Durable(url), []

    async def beat(*_: object, **__: object) -> None:
        called.append("beat")
        if not answers:
            await asyncio.Event().wait()
        raise StorageUnavailableError

    open_storage = durable.engine._open_storage

    def storage_that_cannot_tell() -> Storage:
        storage = open_storage()
        storage.beat = beat  # type: ignore[method-assign,assignment]
        return storage

    durable.engine._open_storage = storage_that_cannot_tell
    served = await exchange(durable.wrap(lambda scope, receive, send: answer(send)), http_scope())
    await durable.engine.stop()

    assert (served.status, called[:1]) == (200, ["beat"])
