"""A time limit of the application ends its transaction: that is its error, no outage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from support.databases.postgres import fetch

from asgi_durable import Durable, StorageUnavailableError

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("it sets options of its own connections"),
]

PID = sa.text("SELECT pg_backend_pid()")
# Wait until the server has ended the connection, with the event loop or without.
GONE, BLOCKED = "gone", "blocked"
# The database for a transaction's record.
RECORDS = ("asgi_durable_transactions", "asgi_durable_steps")
# The statements of a transaction, and the server's error code. A statement that exceeds a limit
# exceeds it by far, so that only the limit can end it.
LIMITS = {
    "a lock that is not waited for": (["SELECT * FROM goods FOR UPDATE NOWAIT"], "55P03"),
    "lock_timeout": (["SET LOCAL lock_timeout = '20ms'", "UPDATE goods SET number = 9"], "55P03"),
    "statement_timeout": (["SET LOCAL statement_timeout = '20ms'", "SELECT pg_sleep(60)"], "57014"),
    "lock_timeout at the commit": (
        ["SET LOCAL lock_timeout = '20ms'", "INSERT INTO checked VALUES (1)"],
        "55P03",
    ),
    "a statement that was cancelled": (["SELECT pg_cancel_backend(pg_backend_pid())"], "57014"),
    "idle_in_transaction_session_timeout": (
        ["SET LOCAL idle_in_transaction_session_timeout = '20ms'", GONE, "SELECT 1"],
        "25P03",
    ),
    "idle_in_transaction_session_timeout while the event loop is blocked": (
        ["SET LOCAL idle_in_transaction_session_timeout = '20ms'", BLOCKED, "SELECT 1"],
        "25P03",
    ),
    "idle_in_transaction_session_timeout at the end": (
        ["SET LOCAL idle_in_transaction_session_timeout = '20ms'", GONE],
        "25P03",
    ),
}
# A row of the second one is checked at the COMMIT, with a lock on the first one.
TABLES = """
CREATE TABLE goods (number int);
INSERT INTO goods VALUES (1);
CREATE TABLE checked (number int);
CREATE FUNCTION check_it() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN UPDATE goods SET number = 9; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER checked AFTER INSERT ON checked DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION check_it();
"""


@pytest.fixture(params=["in the log's database", "in another database"])
async def durable(
    request: pytest.FixtureRequest, postgres_url: str, sqlite_url: str
) -> AsyncIterator[Durable]:
    """An instance whose transactions are in Postgres, with the tables."""
    own = request.param == "in the log's database"
    durable = Durable(postgres_url) if own else Durable(sqlite_url, application_url=postgres_url)
    if not own:
        schema = postgres_url.rpartition("search_path=")[2]
        await fetch(postgres_url, f"CREATE SCHEMA {schema}")
    async with durable:
        connection = await asyncpg.connect(driver_url(postgres_url))
        await connection.execute(TABLES)
        await connection.close()
        yield durable


def driver_url(url: str) -> str:
    base, _, query = url.partition("?")
    kept = [one for one in query.split("&") if not one.startswith("schema=")]
    return f"{base}?{'&'.join(kept)}"


@pytest.fixture
async def locked(durable: Durable, postgres_url: str) -> AsyncIterator[None]:
    """Another transaction has locked the row."""
    connection = await asyncpg.connect(driver_url(postgres_url))
    async with connection.transaction():
        await connection.execute("SELECT * FROM goods FOR UPDATE")
        yield
    await connection.close()


async def has_disconnected(url: str, pid: int) -> None:
    """Wait until the server has closed a connection."""
    while await fetch(url, "SELECT 1 FROM pg_stat_activity WHERE pid = $1", pid):
        await asyncio.sleep(0.01)


def has_disconnected_in_thread(url: str, pid: int) -> None:
    """Wait as :func:`has_disconnected` does, and block the caller."""
    thread = threading.Thread(target=lambda: asyncio.run(has_disconnected(url, pid)))
    thread.start()
    thread.join()


def transaction_of(
    durable: Durable, url: str, statements: list[str], runs: list[int], *, is_async: bool
) -> Callable[[], Coroutine[Any, Any, str]]:
    """Return a function that runs some statements in a transaction."""

    @durable.transaction
    async def asynchronous() -> str:
        runs.append(1)
        pid = (await durable.session.execute(PID)).scalar_one()
        for statement in statements:
            if statement == GONE:
                await has_disconnected(url, pid)
            elif statement == BLOCKED:
                has_disconnected_in_thread(url, pid)
            else:
                await durable.session.execute(sa.text(statement))
        return "done"

    @durable.transaction
    def blocking() -> str:
        runs.append(1)
        session = durable.blocking.session
        pid = session.execute(PID).scalar_one()
        for statement in statements:
            if statement in (GONE, BLOCKED):
                has_disconnected_in_thread(url, pid)
            else:
                session.execute(sa.text(statement))
        return "done"

    return asynchronous if is_async else lambda: durable.run_step(blocking)


def code_of(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.usefixtures("locked")
async def test_a_limit_of_the_application_is_an_error_that_its_workflow_can_handle(
    durable: Durable, postgres_url: str, limit: str, *, is_async: bool
) -> None:
    statements, code = LIMITS[limit]
    runs: list[int] = []
    limited = transaction_of(durable, postgres_url, statements, runs, is_async=is_async)

    @durable.workflow
    async def work() -> str:
        try:
            return await limited()
        except DBAPIError as error:
            return f"handled {code_of(error)}"

    with_id = durable.options(workflow_id="w")
    assert await with_id.run_workflow(work) == f"handled {code}"
    assert await with_id.run_workflow(work) == f"handled {code}"
    assert len(runs) == 1


def raising(code: str) -> str:
    """Return a statement that fails as a transaction does that the server rolls back."""
    return f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_what_is_given_up_for_another_transaction_is_run_again_and_logged(
    durable: Durable, code: str, caplog: pytest.LogCaptureFixture, *, is_async: bool
) -> None:
    runs: list[int] = []

    def statement() -> sa.TextClause:
        runs.append(1)
        return sa.text(raising(code) if len(runs) == 1 else "UPDATE goods SET number = 2")

    @durable.transaction
    async def asynchronous() -> int:
        return (await durable.session.execute(statement())).rowcount

    @durable.transaction
    def blocking() -> int:
        return durable.blocking.session.execute(statement()).rowcount

    @durable.workflow
    async def work() -> int:
        return await (asynchronous() if is_async else durable.run_step(blocking))

    assert await durable.options(workflow_id="w").run_workflow(work) == 1
    assert len(runs) == 2
    (line,) = [r.getMessage() for r in caplog.records if "trying again" in r.getMessage()]
    assert "of workflow w (" in line


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_what_is_given_up_each_time_is_the_transactions_error_in_the_end(
    postgres_url: str, caplog: pytest.LogCaptureFixture, *, is_async: bool
) -> None:
    async with Durable(postgres_url, storage_patience=0.1) as durable:
        runs: list[int] = []
        failing = transaction_of(durable, postgres_url, [raising("40001")], runs, is_async=is_async)

        @durable.workflow
        async def work() -> str | None:
            try:
                return await failing()
            except DBAPIError as error:
                return code_of(error)

        with_id = durable.options(workflow_id="w")
        assert await with_id.run_workflow(work) == "40001"
        tried = len(runs)
        assert await with_id.run_workflow(work) == "40001"
        assert 3 <= len(runs) == tried < 10
        with pytest.raises(DBAPIError):
            await failing()
        assert 3 <= len(runs) - tried < 10
    assert "was the last one" in caplog.text


@pytest.mark.parametrize("code", ["08006", "25006", "53300", "57P01", "57P03", "58030"])
async def test_an_outage_is_no_error_of_the_transactions(
    postgres_url: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Durable(postgres_url, storage_patience=0.1, drain_timeout=0.0) as durable:
        runs: list[int] = []
        failing = transaction_of(durable, postgres_url, [raising(code)], runs, is_async=True)

        @durable.workflow
        async def work() -> str:
            try:
                return await failing()
            except Exception:
                return "handled"

        with_id = durable.options(workflow_id="w")
        with pytest.raises(StorageUnavailableError):
            await with_id.run_workflow(work)
        assert (await (await durable.retrieve_workflow("w")).get_status()).status == "PENDING"
    assert "Workflow w (" in caplog.text


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_a_limit_that_ends_a_statement_of_the_librarys_is_an_outage(
    durable: Durable, postgres_url: str, *, is_async: bool
) -> None:
    """Its record waits for another transaction's lock, longer than the application's limit."""
    limit, loop, runs = sa.text("SET LOCAL lock_timeout = '20ms'"), asyncio.get_running_loop(), []
    connection = await asyncpg.connect(driver_url(postgres_url))
    found = await connection.fetch("SELECT oid::regclass::text AS name FROM pg_class")
    names = {row["name"] for row in found}
    name = next(name for name in RECORDS if name in names)

    async def lock_once() -> None:
        runs.append(1)
        await connection.execute("BEGIN" if len(runs) == 1 else "ROLLBACK")
        if len(runs) == 1:
            await connection.execute(f"LOCK TABLE {name} IN SHARE MODE")

    @durable.transaction
    async def asynchronous() -> str:
        await durable.session.execute(limit)
        await lock_once()
        return "done"

    @durable.transaction
    def blocking() -> str:
        durable.blocking.session.execute(limit)
        asyncio.run_coroutine_threadsafe(lock_once(), loop).result()
        return "done"

    @durable.workflow
    async def work() -> str:
        return await (asynchronous() if is_async else durable.run_step(blocking))

    assert await work() == "done"
    assert len(runs) == 2
    await connection.close()
