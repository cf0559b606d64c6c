"""Behind a pooler in transaction mode: it needs no session, and no executor is declared dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import asyncpg
import pytest
import sqlalchemy as sa
from support.databases.pgbouncer import POOL_SIZE, PgBouncer
from support.databases.postgres import PostgresServer, fetch, temporary_schema, with_schema
from support.databases.proxy import Proxy
from support.databases.statement_log import StatementLog
from support.databases.storages import (
    POSTGRES,
    Adapter,
    OpenStorage,
    enter,
    is_alive,
    kinds,
    take_over,
    until,
)
from support.records import EXECUTOR, record, step, workflow

from asgi_durable import StorageError, StorageUnavailableError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.transactions.sessions import PostgresSessions
from asgi_durable.storage.protocol import Runnable, Storage
from asgi_durable.storage.writes import OutcomeKind, StartWorkflow

pytestmark = pytest.mark.anyio

DONE = OutcomeKind.DONE
POOLED = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
LEASE_SECONDS = 1.5
NOTHING = Runnable(names=frozenset())


@pytest.fixture
def schema(own_postgres: PostgresServer) -> Iterator[str]:
    """The name of a schema that does not exist yet."""
    with temporary_schema(own_postgres.url) as schema:
        yield schema


@pytest.fixture
def new_storage(own_pgbouncer: PgBouncer, schema: str) -> Iterator[Adapter]:
    """Make storages behind the pooler; the server logs their statements."""
    with own_pgbouncer.database(schema, settings="SET log_statement TO 'all'") as url:
        yield Adapter(url=url, **POSTGRES)


async def test_neither_locks_nor_messages_are_tried(
    own_postgres: PostgresServer, open_storage: OpenStorage
) -> None:
    log = StatementLog(own_postgres)

    storage, other = await open_storage(EXECUTOR), await open_storage("other")
    assert await kinds(storage, StartWorkflow(workflow()), record(step())) == [DONE] * 2
    await storage.send(None, "hello")
    assert await is_alive(storage)
    assert await is_alive(other, "other")
    locks = await fetch(own_postgres.url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'")

    statements = log.new_statements()
    assert any("asgi_durable_executors" in text for text in statements)
    assert [text for text in statements if "LISTEN" in text or "pg_notify" in text] == []
    assert locks == []


async def test_what_needs_sessions_cannot_be_switched_on(new_storage: Adapter) -> None:
    storage = Adapter(url=f"{new_storage.url}&session_features=on", **POSTGRES)()
    await storage.open()
    try:
        with pytest.raises(StorageError, match="session_features=on") as caught:
            await enter(storage)
    finally:
        await storage.close()

    assert not isinstance(caught.value, StorageUnavailableError)


async def test_connections_to_the_server_are_shared(
    own_postgres: PostgresServer, open_storage: OpenStorage
) -> None:
    before = len(await fetch(own_postgres.url, POOLED))
    storages = {name: await open_storage(name) for name in map(str, range(10))}

    assert all(await asyncio.gather(*(is_alive(s, name) for name, s in storages.items())))

    assert len(await fetch(own_postgres.url, POOLED)) - before <= POOL_SIZE


async def test_executors_behind_it_and_beside_it_outlive_their_leases_together(
    own_postgres: PostgresServer, open_storage: OpenStorage, schema: str
) -> None:
    pooled = {
        name: await open_storage(name, lease_seconds=LEASE_SECONDS) for name in map(str, range(10))
    }
    beside = Adapter(url=with_schema(own_postgres.url, schema), **POSTGRES)()
    await beside.open()
    try:
        await beside.register("beside", lease_seconds=LEASE_SECONDS, on_message=str)
        storages = {**pooled, "beside": beside}
        for name, storage in storages.items():
            write = StartWorkflow(workflow(name, executor_id=name))
            assert await kinds(storage, write) == [DONE]
        gaps = await asyncio.gather(*(keep_beating(s, name) for name, s in storages.items()))

        asked_at = time.monotonic()
        alive = await asyncio.gather(*(is_alive(s, name) for name, s in storages.items()))
        taken = await asyncio.gather(*(take_over(s, name) for name, s in storages.items()))
        # If the machine stood still between two heartbeats, the test proves nothing.
        if max(*gaps, time.monotonic() - asked_at) < LEASE_SECONDS / 2:
            assert all(alive)
            assert taken == [[]] * len(storages)
    finally:
        await beside.close()


async def keep_beating(storage: Storage, executor_id: str) -> float:
    """Beat for three leases; return the longest pause."""
    began_at = last_at = time.monotonic()
    longest = 0.0
    while time.monotonic() < began_at + 3 * LEASE_SECONDS:
        await storage.beat(executor_id, lease_seconds=LEASE_SECONDS, runnable=NOTHING)
        longest = max(longest, time.monotonic() - last_at)
        last_at = time.monotonic()
        await asyncio.sleep(0.1)
    return longest


async def test_prepared_statements_are_refused_with_the_way_out(new_storage: Adapter) -> None:
    url = new_storage.url.replace("&prepared_statements=false", "")
    storages = [Adapter(url=url, **POSTGRES)() for _ in range(POOL_SIZE)]

    results = await asyncio.gather(*(s.open() for s in storages), return_exceptions=True)
    for storage in storages:
        await storage.close()

    refusals = [error for error in results if error is not None]
    assert refusals
    assert all(isinstance(error, StorageError) for error in refusals)
    assert any("prepared_statements=false" in str(error) for error in refusals)


async def test_statements_that_fill_the_pool_are_not_cut(
    own_postgres: PostgresServer, own_pgbouncer: PgBouncer, new_storage: Adapter
) -> None:
    async with Proxy(own_pgbouncer.port) as proxy:
        url = new_storage.url.replace(f":{own_pgbouncer.port}/", f":{proxy.port}/")
        sessions = PostgresSessions(PostgresDatabase.from_url(f"{url}&command_timeout=0.5"))
        await sessions.open()
        holder = await asyncpg.connect(own_postgres.url)
        await holder.fetch("SELECT pg_advisory_lock(4711)")

        waiting = [asyncio.create_task(wait_for_the_lock(sessions)) for _ in range(POOL_SIZE)]
        await until(lambda: all_wait(own_postgres))
        asked_before = proxy.connections_made

        async def all_are_asked_about_often() -> bool:
            return proxy.connections_made >= asked_before + 4 * POOL_SIZE

        await until(all_are_asked_about_often)
        await holder.close()

        assert await asyncio.gather(*waiting) == [1] * POOL_SIZE
        await sessions.close()


async def wait_for_the_lock(sessions: PostgresSessions) -> int:
    async with sessions.begin(None) as connection:
        await connection.execute(sa.text("SELECT pg_advisory_xact_lock(4711)"))
        return (await connection.execute(sa.text("SELECT 1"))).scalar_one()


async def all_wait(server: PostgresServer) -> bool:
    """Return True if the whole pool waits for the lock."""
    waiting = await fetch(
        server.url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    )
    return len(waiting) == POOL_SIZE
