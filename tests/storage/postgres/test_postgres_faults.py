"""Connections that break and servers that restart: a repeated call has its effect exactly once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import sqlalchemy as sa
from support.databases.postgres import PostgresServer, fetch
from support.databases.proxy import Proxy
from support.databases.storages import (
    PATIENCE_SECONDS,
    POSTGRES,
    WORK,
    Adapter,
    OpenStorage,
    beat,
    enter,
    is_alive,
    kinds,
    orphans_appear,
    until,
)
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable import StorageUnavailableError
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import StepSlot
from asgi_durable.storage.writes import ClaimRequest, OutcomeKind, StartWorkflow

pytestmark = pytest.mark.anyio

DONE = OutcomeKind.DONE


@pytest.fixture
def new_storage(own_postgres_url: str) -> Adapter:
    """Make storages on a schema of a server that no other test uses."""
    return Adapter(url=own_postgres_url, **POSTGRES)


async def until_available(work: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call until it succeeds; before, it may only raise ``StorageUnavailableError``."""

    async def succeeds() -> list[Any]:
        try:
            return [await work()]
        except StorageUnavailableError:
            return []

    (result,) = await until(succeeds)
    return result


async def end_connections(server: PostgresServer) -> int:
    """End all connections; return how many there were."""
    ended = await fetch(
        server.url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )
    return len(ended)


async def insert_nothing(storage: Storage) -> None:
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("SELECT 1"))


# Connections


async def test_a_storage_whose_connections_were_ended_goes_on(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    await storage.commit([StartWorkflow(workflow())])
    await insert_nothing(storage)

    assert await end_connections(own_postgres) > 0

    await until_available(lambda: storage.commit([record(step())]))
    await until_available(lambda: storage.get_workflow("w"))
    await until_available(lambda: insert_nothing(storage))
    assert await until_available(lambda: is_alive(storage))
    assert await kinds(storage, success()) == [DONE]


@pytest.mark.needs_sessions("that a connection is gone says nothing on its executor")
async def test_an_executor_whose_connections_were_ended_outlives_one_that_is_gone(
    own_postgres: PostgresServer, storage: Storage, other: Storage, open_storage: OpenStorage
) -> None:
    gone = await open_storage("gone")
    await gone.commit([StartWorkflow(workflow(executor_id="gone"))])
    await end_connections(own_postgres)
    for survivor, executor_id in ((storage, EXECUTOR), (other, OTHER)):
        await until_available(partial(is_alive, survivor, executor_id))

    await gone.close()
    await orphans_appear(other, OTHER)

    assert await is_alive(storage)


@pytest.mark.needs_sessions("messages need LISTEN")
async def test_messages_arrive_again_after_the_connections_were_ended(
    own_postgres: PostgresServer, open_storage: OpenStorage, other: Storage
) -> None:
    messages: list[str] = []
    storage = await open_storage(EXECUTOR, on_message=messages.append)
    await end_connections(own_postgres)

    async def one_arrives() -> bool:
        await until_available(lambda: is_alive(storage))
        await until_available(lambda: other.send(EXECUTOR, "hello"))
        return bool(messages)

    await until(one_arrives)


async def test_a_transaction_whose_connection_was_ended_leaves_nothing(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    await storage.commit([StartWorkflow(workflow())])
    slot = StepSlot(workflow_id="w", step_number=0, executor_id=EXECUTOR)

    with pytest.raises(StorageUnavailableError):
        async with storage.transaction(slot) as transaction:
            await transaction.session.execute(sa.text("SELECT 1"))
            await end_connections(own_postgres)
            await transaction.record(step())

    (run,) = await until_available(lambda: storage.load_runs(["w"]))
    assert run.steps == ()


@pytest.fixture
async def proxy(new_storage: Adapter) -> AsyncIterator[Proxy]:
    async with Proxy(port_of(new_storage)) as proxy:
        yield proxy


def port_of(adapter: Adapter) -> int:
    return urlsplit(adapter.url).port or 5432


@pytest.fixture
async def proxied(proxy: Proxy, new_storage: Adapter) -> AsyncIterator[Storage]:
    """An open storage with ``executor-1``, whose connections can be cut."""
    url = new_storage.url.replace(f":{port_of(new_storage)}/", f":{proxy.port}/")
    storage = replace(new_storage, url=url)()
    await storage.open()
    await enter(storage)
    yield storage
    await storage.close()


async def cut_at_each_reply(
    proxy: Proxy, work: Callable[[int], Awaitable[None]], *, check: Callable[[int], Awaitable[None]]
) -> None:
    """Do some work repeatedly; the n-th time the server's n-th reply is lost."""
    for number in itertools.count(1):
        proxy.cut_at_reply(number)
        await work(number)
        was_cut = proxy.stop_cutting()
        await check(number)
        if not was_cut:
            assert number > 1
            return


async def test_a_batch_without_an_answer_is_repeated_and_done_once(
    proxy: Proxy, proxied: Storage
) -> None:
    async def work(number: int) -> None:
        w, r = f"w{number}", f"r{number}"
        end = success(r, output=None, response=response(r))
        writes = [StartWorkflow(workflow(w)), record(step(w)), success(w), record(step(r)), end]
        (claimed,) = await until_available(lambda: kinds(proxied, ClaimRequest(request(r))))
        assert claimed in {DONE, OutcomeKind.RESUMED}
        assert await until_available(lambda: kinds(proxied, *writes)) == [DONE] * 5

    async def check(number: int) -> None:
        runs = await proxied.load_runs([f"w{number}", f"r{number}"])
        assert [(run.workflow.is_final, len(run.steps)) for run in runs] == [(True, 1)] * 2

    await cut_at_each_reply(proxy, work, check=check)


async def test_a_transaction_without_an_answer_is_recorded_if_and_only_if_it_is_committed(
    proxy: Proxy, proxied: Storage
) -> None:
    async with proxied.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (workflow_id text)"))

    async def work(number: int) -> None:
        slot = StepSlot(workflow_id=f"w{number}", step_number=0, executor_id=EXECUTOR)
        try:
            async with proxied.transaction(slot) as transaction:
                await transaction.session.execute(
                    sa.text("INSERT INTO effects VALUES (:id)"), {"id": slot.workflow_id}
                )
                await transaction.record(step(slot.workflow_id))
        except StorageUnavailableError:
            pass
        else:
            (run,) = await proxied.load_runs([slot.workflow_id])
            assert len(run.steps) == 1

    async def check(number: int) -> None:
        (run,) = await proxied.load_runs([f"w{number}"])
        assert len(run.steps) == await effects_of(proxied, f"w{number}")

    await proxied.commit([StartWorkflow(workflow(f"w{n}")) for n in range(100)])
    await cut_at_each_reply(proxy, work, check=check)


async def effects_of(storage: Storage, workflow_id: str) -> int:
    async def count() -> int:
        async with storage.transaction(None) as transaction:
            result = await transaction.session.execute(
                sa.text("SELECT count(*) FROM effects WHERE workflow_id = :id"), {"id": workflow_id}
            )
            return result.scalar_one()

    return await until_available(count)


async def test_a_takeover_without_an_answer_leaves_nothing_that_nobody_runs(
    proxy: Proxy, proxied: Storage, other: Storage
) -> None:
    async def work(number: int) -> None:
        w, executor_id = f"w{number}", f"left-{number}"
        await enter(other, executor_id)
        await other.commit([StartWorkflow(workflow(w, executor_id=executor_id))])
        await other.retire(executor_id)
        await until_available(
            lambda: proxied.take_over(EXECUTOR, runnable=WORK, limit=9, suspects=False)
        )

    async def check(number: int) -> None:
        # Without a message it finds them among its own.
        assert f"w{number}" in await proxied.list_pending(EXECUTOR, after="", limit=1000)

    await cut_at_each_reply(proxy, work, check=check)


async def test_a_registration_without_an_answer_can_be_repeated(
    proxy: Proxy, proxied: Storage
) -> None:
    async def work(number: int) -> None:
        await until_available(lambda: enter(proxied, f"again-{number}"))

    async def check(number: int) -> None:
        assert await until_available(lambda: is_alive(proxied, f"again-{number}"))

    await cut_at_each_reply(proxy, work, check=check)


async def test_a_beat_without_an_answer_costs_nobody_its_life(
    proxy: Proxy, proxied: Storage
) -> None:
    async def work(number: int) -> None:
        assert await until_available(lambda: is_alive(proxied))

    async def check(number: int) -> None:
        assert await kinds(proxied, StartWorkflow(workflow(f"w{number}"))) == [DONE]

    await cut_at_each_reply(proxy, work, check=check)


# Locks


async def test_a_row_that_somebody_else_has_locked_is_unavailable_and_no_others_are(
    own_postgres: PostgresServer, open_storage: OpenStorage, new_storage: Adapter
) -> None:
    storage = replace(new_storage, url=f"{new_storage.url}&command_timeout=0.5")()
    await storage.open()
    await enter(storage)
    await storage.commit([StartWorkflow(workflow("w")), StartWorkflow(workflow("x"))])
    async with storage.transaction(None) as transaction:
        path = (await transaction.session.execute(sa.text("SHOW search_path"))).scalar_one()
    locker = await asyncpg.connect(own_postgres.url)
    try:
        async with locker.transaction():
            await locker.execute(
                f"SELECT 1 FROM {path}.asgi_durable_workflows WHERE workflow_id = 'w' FOR UPDATE"
            )

            with pytest.raises(StorageUnavailableError):
                await storage.commit([success("w")])
            assert await kinds(storage, success("x")) == [DONE]

        assert await kinds(storage, success("w")) == [DONE]
    finally:
        await locker.close()
        await storage.close()


# The server


async def test_nothing_acknowledged_is_lost_when_the_server_restarts(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    done: list[str] = []
    is_over = asyncio.Event()

    async def write(writer: int) -> None:
        for number in itertools.takewhile(lambda _: not is_over.is_set(), itertools.count()):
            start = StartWorkflow(workflow(f"{writer}-{number}"))
            # Repeated unchanged: the result may have been lost, and not the commit.
            assert await until_available(lambda start=start: kinds(storage, start)) == [DONE]
            done.append(start.workflow.workflow_id)

    async def more_is_done() -> None:
        seen = len(done)

        async def is_more() -> bool:
            return len(done) > seen + 20

        await until(is_more)

    async with asyncio.TaskGroup() as writers:
        for writer in range(4):
            writers.create_task(write(writer))
        for _ in range(3):
            await more_is_done()
            await asyncio.to_thread(own_postgres.restart_immediately)
        await more_is_done()
        is_over.set()

    runs = await storage.load_runs(done)
    assert {run.workflow.workflow_id for run in runs} == set(done)
    assert await is_alive(storage)


async def test_a_server_that_is_down_is_unavailable_and_is_used_again_when_it_is_back(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: storage.commit([StartWorkflow(workflow())]),
        lambda: storage.get_workflow("w"),
        lambda: storage.get_response("w"),
        lambda: storage.load_runs(["w"]),
        lambda: storage.list_pending(EXECUTOR, after="", limit=1),
        lambda: storage.take_over(EXECUTOR, runnable=WORK, limit=1, suspects=False),
        lambda: beat(storage),
        lambda: enter(storage, "another"),
        lambda: insert_nothing(storage),
    ]
    await asyncio.to_thread(own_postgres.kill)
    try:
        for call in calls:
            with pytest.raises(StorageUnavailableError):
                await call()
    finally:
        await asyncio.to_thread(own_postgres.start)

    for call in calls:
        await until_available(call)
    assert await storage.get_workflow("w") == workflow()


async def test_a_hint_that_cannot_be_sent_is_lost(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    await asyncio.to_thread(own_postgres.kill)
    try:
        try:
            await storage.send(None, "hello")
        except StorageUnavailableError:
            pass
    finally:
        await asyncio.to_thread(own_postgres.start)


async def test_a_storage_can_be_closed_while_its_server_is_down(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    await insert_nothing(storage)
    await asyncio.to_thread(own_postgres.kill)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await storage.close()
    finally:
        await asyncio.to_thread(own_postgres.start)
