"""Engines without any reference that were never stopped: they end by themselves."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
from support.asgi import answer, exchange, http_scope, keyed
from support.executors import executor_of, query, until

from asgi_durable import Durable, WorkflowHandle

pytestmark = pytest.mark.anyio

LIVING = "SELECT executor_id FROM asgi_durable_executors WHERE state = 'ALIVE'"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def threads() -> set[threading.Thread]:
    """Return the engines' threads."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("asgi-durable")}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def started(url: str) -> Durable:
    """Return an instance that is never stopped, with a workflow and a step."""
    durable = Durable(url)

    @durable.step
    async def step(number: int) -> int:
        return number

    @durable.workflow(name="work")
    async def work(number: int) -> int:
        return await step(number)

    await durable.__aenter__()
    assert await work(1) == 1
    return durable


async def ends(before: set[threading.Thread]) -> None:
    """Wait until no threads are left that were not there before."""

    def has_ended() -> bool:
        gc.collect()
        return threads() <= before

    await until(has_ended)


async def test_an_engine_that_is_dropped_ends_its_threads(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = threads()
    durable = await started(url)
    name = durable.engine.running().services.storage.name
    assert len(threads() - before) >= 2
    del durable

    await ends(before)

    (line,) = warnings(caplog)
    assert name in line
    assert "never stopped" in line
    assert not await query(url, LIVING)


async def test_so_is_one_that_served_an_application_without_a_lifespan(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = threads()
    app = Durable(url).wrap(lambda scope, receive, send: answer(send, b"hello"))
    for scope in (http_scope(), keyed()):
        assert (await exchange(app, scope, b"{}")).body == b"hello"
    del app

    await ends(before)

    assert len(warnings(caplog)) == 1


def test_so_is_one_of_an_event_loop_that_has_ended(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = threads()

    async def start() -> None:
        await started(url)

    asyncio.run(start())
    asyncio.run(ends(before))

    assert len(warnings(caplog)) == 1


async def test_an_engine_goes_on_as_long_as_an_application_a_handle_or_a_function_has_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = threads()
    durable = Durable(url)

    @durable.workflow(name="work")
    async def work() -> str:
        return "done"

    app = durable.wrap(lambda scope, receive, send: answer(send, b"hello"))
    await durable.__aenter__()
    handle: WorkflowHandle[str] = await durable.start_workflow(work)
    executor = weakref.ref(executor_of(durable))
    del durable

    gc.collect()
    assert await handle.get_result(timeout=60) == "done"
    del handle
    gc.collect()
    assert await work() == "done"
    del work
    gc.collect()
    assert (await exchange(app, keyed(), b"{}")).body == b"hello"
    found = executor()
    assert found is not None
    assert not found._is_over
    assert warnings(caplog) == []
    del app, found

    await ends(before)


async def test_a_workflow_that_runs_keeps_its_engine(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, ended = threads(), asyncio.Event()
    loop = asyncio.get_running_loop()
    retry_here: asyncio.Future[None] = loop.create_future()

    async def start() -> None:
        durable = Durable(url)

        @durable.workflow(name="work")
        async def work() -> None:
            await retry_here
            ended.set()

        await durable.__aenter__()
        await durable.options(workflow_id="w").start_workflow(work)

    await start()
    gc.collect()
    assert len(await query(url, LIVING)) == 1
    retry_here.set_result(None)
    await asyncio.wait_for(ended.wait(), 60)
    retry_here = loop.create_future()

    await ends(before)

    assert len(warnings(caplog)) == 1
    sql = "SELECT state FROM asgi_durable_workflows WHERE workflow_id = 'w'"
    assert await query(url, sql) == [("SUCCESS",)]


async def test_one_that_is_stopped_ends_without_a_word(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = threads()
    durable = await started(url)
    await durable.__aexit__(None, None, None)
    del durable

    await ends(before)

    assert warnings(caplog) == []
