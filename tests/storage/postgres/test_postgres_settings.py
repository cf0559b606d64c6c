"""Other parts of a Postgres URL than the server: its driver, the pool, a name, files."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import sqlalchemy as sa
from support.databases.postgres import fetch

from asgi_durable import Durable, DurableUsageError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 60
PID = sa.text("SELECT pg_backend_pid()")
NAMES = "SELECT DISTINCT application_name FROM pg_stat_activity WHERE pid = ANY($1::int4[])"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+asyncpg", "postgresql+psycopg"])
async def test_a_driver_in_the_scheme_changes_nothing(postgres_url: str, scheme: str) -> None:
    durable = Durable(postgres_url.replace("postgresql://", f"{scheme}://"))

    @durable.transaction
    async def name() -> str:
        return (await durable.session.execute(sa.text("SELECT current_schema()"))).scalar_one()

    @durable.transaction
    def blocking_name() -> str:
        return durable.blocking.session.execute(sa.text("SELECT current_schema()")).scalar_one()

    async with durable:
        assert await name() == await durable.run_step(blocking_name)


@pytest.mark.needs_sessions("the pooler has connections and names of its own")
@pytest.mark.parametrize(("parameter", "at_once"), [("", 6), ("&pool_size=2", 2)])
async def test_the_pool_bounds_the_transactions_of_async_code(
    postgres_url: str, parameter: str, at_once: int
) -> None:
    durable = Durable(postgres_url + parameter)
    barrier = asyncio.Barrier(at_once)

    @durable.transaction
    async def look() -> int:
        pid = (await durable.session.execute(PID)).scalar_one()
        await barrier.wait()
        return pid

    async with durable, asyncio.timeout(TIMEOUT_SECONDS):
        pids = await asyncio.gather(*(look() for _ in range(6)))

    assert len(set(pids)) == at_once


@pytest.mark.needs_sessions("the pooler has connections and names of its own")
@pytest.mark.parametrize(("parameter", "at_once"), [("", 6), ("&pool_size=2", 2)])
def test_the_pool_bounds_the_transactions_of_threads(
    postgres_url: str, parameter: str, at_once: int
) -> None:
    durable = Durable(postgres_url + parameter)
    barrier = Barrier(at_once)

    @durable.transaction
    def look() -> int:
        pid = durable.blocking.session.execute(PID).scalar_one()
        barrier.wait(TIMEOUT_SECONDS)
        return pid

    with durable, ThreadPoolExecutor(6) as threads:
        pids = list(threads.map(lambda _: look(), range(6)))

    assert len(set(pids)) == at_once


@pytest.mark.needs_sessions("the pooler has connections and names of its own")
@pytest.mark.parametrize(
    ("parameter", "variable", "name"),
    [
        ("", "", "asgi-durable"),
        ("", "shop", "shop"),
        ("&application_name=a%20shop", "other", "a shop"),
    ],
)
async def test_the_server_shows_whose_connections_they_are(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, parameter: str, variable: str, name: str
) -> None:
    monkeypatch.setenv("PGAPPNAME", variable)
    durable = Durable(postgres_url + parameter)
    shown = sa.text("SELECT current_setting('application_name')")

    @durable.transaction
    async def in_task() -> str:
        return (await durable.session.execute(shown)).scalar_one()

    @durable.transaction
    def in_thread() -> str:
        return durable.blocking.session.execute(shown).scalar_one()

    async with durable:
        assert [await in_task(), await durable.run_step(in_thread)] == [name, name]
    connection = await PostgresDatabase.from_url(postgres_url + parameter).connect()
    pid = connection.get_server_pid()
    found = await fetch(postgres_url, NAMES, [pid])
    await connection.close()
    assert [row[0] for row in found] == [name]


def test_a_service_names_its_connections_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    (dsn,) = PostgresDatabase.from_url("postgresql:///?service=shop").dsns
    assert "application_name" not in dsn

    monkeypatch.setenv("PGSERVICE", "shop")
    (dsn,) = PostgresDatabase.from_url("postgresql://host/shop").dsns
    assert "application_name" not in dsn


@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        ("pool_size=0", "pool_size must be a whole number from 1 to 10000, got '0'"),
        ("pool_size=-1", "pool_size must be.* got '-1'"),
        ("pool_size=1_0", "pool_size must be.* got '1_0'"),
        ("pool_size=many", "pool_size must be.* got 'many'"),
        ("pool_size=", "pool_size must be.* got ''"),
        ("application_name=", "application_name must be 1 to 63 printable ASCII.* got ''"),
        ("application_name=B%C3%BCro", "application_name must be.* got 'Büro'"),
        (f"application_name={'x' * 64}", "application_name must be 1 to 63"),
        ("ssl=require", "'ssl' is a parameter of SQLAlchemy's: use sslmode="),
        ("prepared_statement_cache_size=0", "use prepared_statements=false"),
        ("max_overflow=5", "use pool_size="),
    ],
)
def test_what_a_url_cannot_say_is_named(parameter: str, named: str) -> None:
    with pytest.raises(DurableUsageError, match=named):
        PostgresDatabase.from_url(f"postgresql://u:s3cret@host/shop?{parameter}")


def test_a_relative_file_is_the_same_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "postgresql://host/shop?sslrootcert=certs/a%20b.pem&passfile=pass&sslkey=/k.pem"

    database = PostgresDatabase.from_url(url)

    folder = str(tmp_path).replace("/", "%2F")
    assert f"sslrootcert={folder}%2Fcerts%2Fa%20b.pem" in database.dsns[0]
    assert f"passfile={folder}%2Fpass" in database.dsns[0]
    assert dict(database.files)["sslrootcert"] == str(tmp_path / "certs" / "a b.pem")
