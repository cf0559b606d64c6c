"""Transactions in a database of the application's that does not hold the step log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.interruption import Gate

from asgi_durable import Durable, NonDeterministicWorkflowError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase

pytestmark = pytest.mark.anyio

INSERT = sa.text("INSERT INTO effects (name) VALUES (:name)")


@pytest.fixture(params=["sqlite", "postgres"])
def application_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        asyncio.run(create_schema(url))
        return url
    return f"sqlite:///{tmp_path}/application.db"


async def create_schema(url: str) -> None:
    """Create the schema on the search path, as in an application's database."""
    database = PostgresDatabase.from_url(url)
    connection = await database.connect()
    await connection.execute(f'CREATE SCHEMA "{database.schema}"')
    await connection.close()


@pytest.fixture
def new_durable(url: str, application_url: str) -> Callable[[], Durable]:
    return lambda: Durable(url, application_url=application_url, drain_timeout=0.0)


@pytest.fixture
async def durable(new_durable: Callable[[], Durable]) -> AsyncIterator[Durable]:
    async with new_durable() as durable:
        await create_table(durable)
        yield durable


async def create_table(durable: Durable) -> None:
    @durable.transaction
    async def create() -> None:
        await durable.session.execute(sa.text("DROP TABLE IF EXISTS effects"))
        await durable.session.execute(sa.text("CREATE TABLE effects (name VARCHAR(20))"))
        await durable.session.execute(sa.text("DELETE FROM asgi_durable_transactions"))

    await create()


async def rows(durable: Durable, query: str = "SELECT name FROM effects") -> list[object]:
    @durable.transaction
    async def read() -> list[object]:
        return [row[0] for row in (await durable.session.execute(sa.text(query))).all()]

    return await asyncio.create_task(read())


async def test_rows_and_record_commit_in_the_application_s_database(durable: Durable) -> None:
    @durable.transaction
    async def insert(name: str) -> str:
        await durable.session.execute(INSERT, {"name": name})
        return name.upper()

    @durable.workflow
    async def work() -> str:
        return await insert("a")

    with_id = durable.options(workflow_id="w")
    assert await with_id.run_workflow(work) == "A"
    assert await with_id.run_workflow(work) == "A"

    assert await rows(durable) == ["a"]
    assert await rows(durable, "SELECT workflow_id FROM asgi_durable_transactions") == ["w"]


async def test_a_transaction_that_is_not_async_commits_there_as_well(
    durable: Durable, application_url: str
) -> None:
    if application_url.startswith("postgresql"):
        pytest.importorskip("psycopg")

    @durable.transaction
    def insert(name: str) -> str:
        durable.blocking.session.execute(INSERT, {"name": name})
        return name.upper()

    @durable.workflow
    def work() -> str:
        return insert("a")

    with_id = durable.options(workflow_id="w")
    assert await with_id.run_workflow(work) == "A"
    assert await with_id.run_workflow(work) == "A"
    assert await rows(durable) == ["a"]
    assert await rows(durable, "SELECT name FROM asgi_durable_transactions") == [
        insert.__qualname__
    ]


async def test_a_transaction_that_the_step_log_does_not_know_of_is_not_run_again(
    durable: Durable, new_durable: Callable[[], Durable]
) -> None:
    """The process died after the application's commit, before the record was in the log."""
    gate = Gate()
    bodies = []

    def define(durable: Durable):
        @durable.transaction
        async def insert() -> int:
            bodies.append("insert")
            await durable.session.execute(INSERT, {"name": "a"})
            return 7

        @durable.step
        async def after() -> None:
            await gate.wait()

        @durable.workflow
        async def work() -> int:
            number = await insert()
            await after()
            return number

        return work

    work = define(durable)
    async with new_durable() as other:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
        await durable.engine.stop()
        with_log = other.engine._running.services.storage  # type: ignore[union-attr]
        connection = with_log._opened.writer.connection  # type: ignore[attr-defined]
        # As if the record had never been copied to the log.
        connection.execute("DELETE FROM asgi_durable_steps")
        gate.open()
        work = define(other)
        assert await other.options(workflow_id="w").run_workflow(work) == 7
        assert await rows(other) == ["a"]
    assert bodies == ["insert"]
    await durable.engine.start()


async def test_a_failure_is_recorded_once_and_its_rows_are_rolled_back(durable: Durable) -> None:
    bodies = []

    @durable.transaction
    async def insert() -> None:
        bodies.append("insert")
        await durable.session.execute(INSERT, {"name": "a"})
        raise ValueError("no")

    @durable.workflow
    async def work() -> str:
        try:
            await insert()
        except ValueError as error:
            return str(error)
        return "inserted"

    with_id = durable.options(workflow_id="w")
    assert await with_id.run_workflow(work) == "no"
    assert await with_id.run_workflow(work) == "no"

    assert bodies == ["insert"]
    assert await rows(durable) == []
    failures = "SELECT count(*) FROM asgi_durable_transactions WHERE error IS NOT NULL"
    assert await rows(durable, failures) == [1]


@pytest.mark.parametrize("application_url", ["postgres"], indirect=True)
async def test_of_duplicates_the_first_commits_and_the_other_takes_its_result(
    durable: Durable,
) -> None:
    """Another run committed while this one was in the body of the transaction.

    This cannot happen on SQLite, which has one writer: the other run commits before or after it.
    """

    @durable.transaction
    async def insert() -> str:
        await durable.session.execute(INSERT, {"name": "late"})
        duplicate.set()
        await committed.wait()
        return "late"

    @durable.workflow
    async def work() -> str:
        return await insert()

    duplicate, committed = asyncio.Event(), asyncio.Event()
    task = asyncio.ensure_future(durable.options(workflow_id="w").run_workflow(work))
    await duplicate.wait()

    @durable.transaction
    async def commit_other_run() -> None:
        registry = durable.engine.registry
        definition = insert.__durable_definition__  # type: ignore[attr-defined]
        await durable.session.execute(
            sa.text(
                "INSERT INTO asgi_durable_transactions VALUES "
                "('w', 0, :name, :digest, :output, NULL, 1, 1)"
            ),
            {
                "name": definition.name,
                "digest": registry.digest(definition, (), {}).value,
                "output": registry.codec.encode("first"),
            },
        )

    await asyncio.create_task(commit_other_run())
    committed.set()

    assert await task == "first"
    assert await rows(durable) == []


async def test_another_transaction_s_record_is_a_divergence(durable: Durable) -> None:
    @durable.transaction
    async def insert() -> None:
        await durable.session.execute(INSERT, {"name": "a"})

    @durable.workflow
    async def work() -> None:
        await insert()

    @durable.transaction
    async def record_another() -> None:
        await durable.session.execute(
            sa.text(
                "INSERT INTO asgi_durable_transactions VALUES "
                "('w', 0, 'another', :digest, NULL, NULL, 1, 1)"
            ),
            {"digest": b"d"},
        )

    await record_another()

    with pytest.raises(NonDeterministicWorkflowError, match="another"):
        await durable.options(workflow_id="w").run_workflow(work)
    assert await rows(durable) == []


async def test_a_transaction_outside_any_workflow_leaves_no_record(durable: Durable) -> None:
    @durable.transaction
    async def insert() -> None:
        await durable.session.execute(INSERT, {"name": "a"})

    await insert()

    assert await rows(durable) == ["a"]
    assert await rows(durable, "SELECT count(*) FROM asgi_durable_transactions") == [0]


async def test_the_step_log_is_no_part_of_the_application_s_database(durable: Durable) -> None:
    @durable.transaction
    async def find() -> bool:
        connection = await durable.session.connection()
        return await connection.run_sync(
            lambda synchronous: sa.inspect(synchronous).has_table("asgi_durable_workflows")
        )

    assert await find() is False
