"""A table is changed while connections are open: a transaction that fails for it runs again."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from support.databases.postgres import fetch

from asgi_durable import Durable

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("it sets options of its own connections"),
]

SELECT = sa.text("SELECT * FROM goods")
SELECT_KIND = sa.text("SELECT number FROM goods WHERE kind = CAST(:kind AS kind)")
# psycopg prepares a statement after this number of executions.
OFTEN = 8


@pytest.fixture(params=["in the log's database", "in another database"])
async def durable(request: pytest.FixtureRequest, postgres_url: str, sqlite_url: str):
    """An instance whose transactions are in Postgres, with a table."""
    schema = postgres_url.rpartition("search_path=")[2]
    await fetch(postgres_url, f"CREATE SCHEMA {schema}")
    await fetch(postgres_url, "CREATE TYPE kind AS ENUM ('a', 'b')")
    await fetch(postgres_url, "CREATE TABLE goods (number int, kind kind DEFAULT 'a')")
    await fetch(postgres_url, "INSERT INTO goods VALUES (1)")
    is_own = request.param == "in the log's database"
    async with (
        Durable(postgres_url) if is_own else Durable(sqlite_url, application_url=postgres_url)
    ) as durable:
        yield durable


async def change_type(url: str) -> None:
    await fetch(url, "ALTER TABLE goods ALTER number TYPE text")


async def add_column(url: str) -> None:
    await fetch(url, "ALTER TABLE goods ADD COLUMN price int")


async def make_type_anew(url: str) -> None:
    await fetch(url, "ALTER TABLE goods DROP COLUMN kind")
    await fetch(url, "DROP TYPE kind")
    await fetch(url, "CREATE TYPE kind AS ENUM ('a', 'b', 'c')")
    await fetch(url, "ALTER TABLE goods ADD COLUMN kind kind DEFAULT 'a'")


@pytest.mark.parametrize("change", [change_type, add_column, make_type_anew])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
@pytest.mark.parametrize("in_workflow", [True, False], ids=["in a workflow", "plain"])
async def test_a_transaction_whose_plan_is_outdated_by_a_migration_is_run_again(
    durable: Durable, postgres_url: str, change, *, is_async: bool, in_workflow: bool
) -> None:
    statement, values = SELECT, {}
    if change is make_type_anew:
        statement, values = SELECT_KIND, {"kind": "a"}

    @durable.transaction
    async def asynchronous() -> int:
        return len((await durable.session.execute(statement, values)).all())

    @durable.transaction
    def blocking() -> int:
        return len(durable.blocking.session.execute(statement, values).all())

    async def call() -> int:
        return await (asynchronous() if is_async else durable.run_step(blocking))

    @durable.workflow
    async def work() -> int:
        return await call()

    run = work if in_workflow else call
    for _ in range(OFTEN):
        assert await run() == 1
    await change(postgres_url)
    for _ in range(OFTEN):
        assert await run() == 1


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_all_connections_of_the_pool_are_made_anew_once_one_is_outdated(
    postgres_url: str, durable: Durable, *, is_async: bool
) -> None:
    ran: list[int] = []

    @durable.transaction
    async def asynchronous() -> int:
        ran.append(1)
        return len((await durable.session.execute(SELECT)).all())

    @durable.transaction
    def blocking() -> int:
        ran.append(1)
        return len(durable.blocking.session.execute(SELECT).all())

    async def call() -> int:
        return await (asynchronous() if is_async else durable.run_step(blocking))

    for _ in range(OFTEN):
        await asyncio.gather(*(call() for _ in range(4)))
    await add_column(postgres_url)
    ran.clear()
    assert await asyncio.gather(*(call() for _ in range(4))) == [1] * 4
    # Each connection fails at most once, even if it is used often from now on.
    assert await asyncio.gather(*(call() for _ in range(20))) == [1] * 20
    assert len(ran) <= 28
