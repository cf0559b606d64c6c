"""Connections whose server is silent: a running statement continues, any other one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from support.databases.postgres import PostgresServer, fetch
from support.databases.proxy import Proxy
from support.databases.storages import PATIENCE_SECONDS, until

from asgi_durable import StorageUnavailableError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.transactions.sessions import PostgresSessions

pytestmark = pytest.mark.anyio

Use = Callable[[AsyncConnection], Awaitable[object]]
Read = Callable[[AsyncConnection, Callable[[], None]], Awaitable[object]]

# The wait before the server is asked about a statement. Machines under load must reply in it.
WAIT_SECONDS = 0.5
LOCK = 4711
MANY_ROWS = sa.text("SELECT repeat('x', 1000) FROM generate_series(1, CAST(:rows AS int))")


@pytest.fixture
async def sessions(proxied_url: str) -> AsyncIterator[PostgresSessions]:
    """Connections through that network; the server is soon asked about their statements."""
    database = PostgresDatabase.from_url(
        f"{proxied_url}&command_timeout={WAIT_SECONDS}&connect_timeout=4"
    )
    sessions = PostgresSessions(database)
    await sessions.open()
    yield sessions
    async with asyncio.timeout(PATIENCE_SECONDS):
        await sessions.close()


async def is_available(sessions: PostgresSessions) -> bool:
    try:
        async with sessions.begin(None) as connection:
            return (await connection.execute(sa.text("SELECT 1"))).scalar_one() == 1
    except StorageUnavailableError:
        return False


async def select(connection: AsyncConnection) -> object:
    return await connection.execute(sa.text("SELECT 'never seen before'"))


async def select_again(connection: AsyncConnection) -> object:
    return await connection.exec_driver_sql("SELECT")


async def commit(connection: AsyncConnection) -> None:
    await connection.commit()


async def roll_back(connection: AsyncConnection) -> None:
    await connection.rollback()


async def fetch_with_the_driver(connection: AsyncConnection) -> object:
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    return await driver.fetch("SELECT 1")


async def copy_with_the_driver(connection: AsyncConnection) -> object:
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    return await driver.copy_from_query("SELECT 1", output=write_nothing)


async def stream_all(connection: AsyncConnection, fall_silent: Callable[[], None]) -> None:
    stream = await connection.stream(MANY_ROWS, {"rows": 100_000})
    await stream.fetchone()
    fall_silent()
    await stream.fetchall()


async def fetch_all(connection: AsyncConnection, fall_silent: Callable[[], None]) -> None:
    """Read more than the server can send at once, so that it has to wait for the reader."""
    fall_silent()
    await connection.execute(MANY_ROWS, {"rows": 100_000})


async def write_nothing(rows: bytes) -> None:
    del rows


@pytest.mark.needs_sessions("a pooler's connections to its server are no business of ours")
@pytest.mark.parametrize("delivers", [False, True])
@pytest.mark.parametrize(
    "use",
    [select, select_again, commit, roll_back, fetch_with_the_driver, copy_with_the_driver],
)
async def test_a_statement_fails_that_the_server_is_not_at_work_for(
    proxy: Proxy, sessions: PostgresSessions, use: Use, delivers: bool
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StorageUnavailableError):
            async with sessions.begin(None) as connection:
                proxy.fall_silent(delivers=delivers)
                await use(connection)

        await until(lambda: is_available(sessions))


@pytest.mark.needs_sessions("a pooler's connections to its server are no business of ours")
@pytest.mark.parametrize("read", [stream_all, fetch_all])
async def test_a_result_that_stops_halfway_fails(
    proxy: Proxy, sessions: PostgresSessions, read: Read
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StorageUnavailableError):
            async with sessions.begin(None) as connection:
                await connection.execute(MANY_ROWS, {"rows": 1})
                await read(connection, lambda: proxy.fall_silent(delivers=True))


@pytest.mark.needs_sessions("a pooler's connections to its server are no business of ours")
async def test_a_statement_fails_whose_backend_is_no_more(
    own_postgres: PostgresServer, proxy: Proxy, sessions: PostgresSessions
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StorageUnavailableError):
            async with sessions.begin(None) as connection:
                pid = (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
                proxy.fall_silent()
                await fetch(own_postgres.url, "SELECT pg_terminate_backend($1, 10000)", pid)
                await select(connection)


@pytest.mark.parametrize("use", [select, commit])
async def test_a_statement_fails_when_nobody_answers_at_all(
    proxy: Proxy, sessions: PostgresSessions, use: Use
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StorageUnavailableError):
            async with sessions.begin(None) as connection:
                proxy.fall_silent(new_connections=True)
                await use(connection)
        proxy.speak_again()

        await until(lambda: is_available(sessions))


async def test_a_statement_fails_when_the_server_refuses_to_be_asked(
    proxy: Proxy, sessions: PostgresSessions
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StorageUnavailableError):
            async with sessions.begin(None) as connection:
                proxy.fall_silent()
                await proxy.stop_listening()
                await select(connection)


async def test_connections_that_fell_silent_in_the_pool_are_closed_all_the_same(
    proxy: Proxy, sessions: PostgresSessions
) -> None:
    async with sessions.begin(None), sessions.begin(None):
        pass
    proxy.fall_silent(new_connections=True)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await sessions.close()


# Statements that must not be cut off


@asynccontextmanager
async def held_lock(server: PostgresServer) -> AsyncIterator[None]:
    """Hold a lock on the server for which statements can wait."""
    holder = await asyncpg.connect(server.url)
    try:
        await holder.fetch("SELECT pg_advisory_lock($1)", LOCK)
        yield
    finally:
        await holder.close()


async def wait_for_the_lock(sessions: PostgresSessions) -> object:
    async with sessions.begin(None) as connection:
        return await connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK})"))


async def more_questions(proxy: Proxy, number: int = 3) -> None:
    """Wait until the server was asked a few more times, each time on a new connection."""
    asked_before = proxy.connections_made

    async def are_asked() -> bool:
        return proxy.connections_made >= asked_before + number

    await until(are_asked)


async def is_waited_for(server: PostgresServer) -> None:
    """Wait until a statement waits for the lock."""

    async def is_waiting() -> bool:
        found = await fetch(
            server.url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        )
        return bool(found)

    await until(is_waiting)


async def test_a_statement_that_waits_for_a_lock_is_not_cut(
    own_postgres: PostgresServer, proxy: Proxy, sessions: PostgresSessions
) -> None:
    async with held_lock(own_postgres):
        waiting = asyncio.create_task(wait_for_the_lock(sessions))
        await is_waited_for(own_postgres)
        await more_questions(proxy)

    assert await waiting


async def test_a_statement_that_takes_long_is_not_cut(
    proxy: Proxy, sessions: PostgresSessions
) -> None:
    before = proxy.connections_made

    async with sessions.begin(None) as connection:
        await connection.execute(sa.text(f"SELECT pg_sleep({5 * WAIT_SECONDS})"))

    assert proxy.connections_made > before + 2


async def test_a_transaction_without_a_statement_is_nobody_s_business(
    proxy: Proxy, sessions: PostgresSessions
) -> None:
    async with sessions.begin(None) as connection:
        before = proxy.connections_made
        await asyncio.sleep(4 * WAIT_SECONDS)
        await select(connection)

    assert proxy.connections_made == before


@pytest.mark.needs_sessions("the pooler would ask in its own name")
async def test_a_server_that_has_no_connection_left_to_be_asked_on_is_alive(
    own_postgres: PostgresServer, proxy: Proxy, proxied_url: str
) -> None:
    await fetch(own_postgres.url, "CREATE ROLE crowded LOGIN")
    try:
        url = proxied_url.replace("postgres@", "crowded@")
        database = PostgresDatabase.from_url(f"{url}&command_timeout={WAIT_SECONDS}")
        sessions = PostgresSessions(database)
        await sessions.open()
        async with held_lock(own_postgres):
            waiting = asyncio.create_task(wait_for_the_lock(sessions))
            await is_waited_for(own_postgres)
            await fetch(own_postgres.url, "ALTER ROLE crowded CONNECTION LIMIT 1")
            await more_questions(proxy)
        assert await waiting
        await sessions.close()
    finally:
        await fetch(own_postgres.url, "DROP ROLE crowded")


@pytest.mark.needs_sessions("a pooler does not tell who reads")
async def test_rows_that_are_read_slowly_are_not_cut(
    proxy: Proxy, sessions: PostgresSessions
) -> None:
    received: list[int] = []

    async def read_slowly(rows: bytes) -> None:
        if not received:
            await more_questions(proxy)
        received.append(len(rows))

    async with sessions.begin(None) as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.copy_from_query(
            "SELECT repeat('x', 999) FROM generate_series(1, 30000)", output=read_slowly
        )

    assert sum(received) == 30_000_000


@pytest.mark.needs_sessions("a pooler does not tell what has arrived")
async def test_a_large_row_that_arrives_slowly_is_not_cut(
    proxy: Proxy, sessions: PostgresSessions
) -> None:
    asked_before = proxy.connections_made
    proxy.slow_down(0.02)

    async with sessions.begin(None) as connection:
        query = sa.text("SELECT octet_length(CAST(:row AS bytea))")
        result = await connection.execute(query, {"row": bytes(12_000_000)})

    assert result.scalar_one() == 12_000_000
    assert proxy.connections_made > asked_before + 2


# Cancellation


async def test_nothing_is_left_of_a_watch_whose_statement_is_cancelled(
    proxy: Proxy, sessions: PostgresSessions
) -> None:
    async def hang() -> None:
        async with sessions.begin(None) as connection:
            proxy.fall_silent(new_connections=True)
            await select(connection)

    hanging = asyncio.create_task(hang())
    await proxy.something_is_lost()
    await more_questions(proxy, 1)
    hanging.cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.wait([hanging])

    assert hanging.cancelled()
    left = [str(task.get_coro()) for task in asyncio.all_tasks()]
    assert [name for name in left if "_watch" in name or "_ask" in name] == []
