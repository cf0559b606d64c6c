"""Features of Postgres alone: schemas, roles, a server to reach, and isolation levels."""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from support.databases.former_database import create_version_1
from support.databases.postgres import PostgresServer, fetch, temporary_schema, with_schema
from support.databases.statement_log import StatementLog, logging_statements
from support.databases.storages import (
    POSTGRES,
    Adapter,
    OpenStorage,
    beat,
    enter,
    is_alive,
    kinds,
)
from support.records import EXECUTOR, OTHER, record, step, success, workflow

from asgi_durable import DurableUsageError, StorageError, StorageUnavailableError
from asgi_durable.storage.postgres import PostgresStorage
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import StepSlot
from asgi_durable.storage.writes import OutcomeKind, StartWorkflow, Write

pytestmark = pytest.mark.anyio

DONE = OutcomeKind.DONE
PASSWORD = "hush-3f9c61d2b07e"
# The server's log lines for statements of the simple and of the extended protocol.


@pytest.fixture
def new_storage(own_postgres_url: str) -> Adapter:
    """Make storages on a schema of a server that no other test uses."""
    return Adapter(url=own_postgres_url, **POSTGRES)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Storage]:
    storage = PostgresStorage(url)
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


# Opening


async def test_ten_storages_open_an_empty_database_at_once(new_storage: Adapter) -> None:
    storages = [new_storage() for _ in range(10)]

    results = await asyncio.gather(*(s.open() for s in storages), return_exceptions=True)
    for storage in storages:
        await storage.close()

    assert results == [None] * 10


@pytest.fixture
def other_schema(own_postgres: PostgresServer) -> Iterator[str]:
    """The name of another schema that does not exist yet."""
    with temporary_schema(own_postgres.url) as schema:
        yield schema


async def test_schemas_of_one_database_know_nothing_of_each_other(
    own_postgres: PostgresServer, storage: Storage, other_schema: str
) -> None:
    await storage.commit([StartWorkflow(workflow())])

    async with opened(with_schema(own_postgres.url, other_schema)) as other:
        await enter(other)
        assert await other.get_workflow("w") is None
        assert await kinds(other, StartWorkflow(workflow())) == [DONE]


async def test_the_applications_tables_are_where_its_role_puts_them(
    own_postgres: PostgresServer, other_schema: str
) -> None:
    async with opened(f"{own_postgres.url}?schema={other_schema}") as storage:
        async with storage.transaction(None) as transaction:
            result = await transaction.session.execute(sa.text("SHOW search_path"))

    assert result.scalar_one() == '"$user", public'


async def test_a_schema_that_is_newer_is_refused(
    own_postgres: PostgresServer, new_storage: Adapter, storage: Storage
) -> None:
    schema = await schema_of(storage)
    await fetch(own_postgres.url, f"UPDATE {schema}.asgi_durable_schema SET version = 99")

    with pytest.raises(StorageError, match=r"newer version of asgi-durable.*99"):
        await new_storage().open()


async def schema_of(storage: Storage) -> str:
    async with storage.transaction(None) as transaction:
        result = await transaction.session.execute(sa.text("SHOW search_path"))
        return result.scalar_one()


@pytest.fixture
def role(own_postgres: PostgresServer) -> Iterator[str]:
    """A role with the right to log in only."""
    role = f"role_{uuid.uuid4().hex}"
    asyncio.run(fetch(own_postgres.url, f"CREATE ROLE {role} LOGIN"))
    yield role
    asyncio.run(fetch(own_postgres.url, f"DROP OWNED BY {role}"))
    asyncio.run(fetch(own_postgres.url, f"DROP ROLE {role}"))


async def test_a_role_without_ddl_rights_needs_an_existing_schema_and_nothing_else(
    own_postgres: PostgresServer, new_storage: Adapter, role: str
) -> None:
    limited = replace(new_storage, url=new_storage.url.replace("//postgres@", f"//{role}@"))
    with pytest.raises(StorageError, match="permission denied") as refusal:
        await limited().open()
    assert not isinstance(refusal.value, StorageUnavailableError)

    async with opened(new_storage.url) as owner:
        schema = await schema_of(owner)
    rights = "SELECT, INSERT, UPDATE, DELETE"
    await fetch(own_postgres.url, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    await fetch(own_postgres.url, f"GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO {role}")

    async with opened(limited.url) as storage:
        await enter(storage)
        assert await kinds(storage, StartWorkflow(workflow()), success()) == [DONE, DONE]
        assert await is_alive(storage)


async def test_a_role_that_may_only_use_the_tables_works_once_a_new_version_is_migrated(
    own_postgres: PostgresServer, new_storage: Adapter, role: str
) -> None:
    await create_version_1(new_storage.url)
    (schema,) = parse_qs(urlsplit(new_storage.url).query)["schema"]
    limited = new_storage.url.replace("//postgres@", f"//{role}@")
    readers = f"reader_of_{role}"
    for statement in (
        f"CREATE ROLE {readers}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}, {readers}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {readers}",
    ):
        await fetch(own_postgres.url, statement)
    with pytest.raises(StorageError, match="permission denied"):
        await PostgresStorage(limited).open()

    async with opened(new_storage.url) as owner:
        secret = await owner.read_secret()

    async with opened(limited) as storage:
        await enter(storage)
        assert await kinds(storage, StartWorkflow(workflow()), success()) == [DONE, DONE]
        assert await storage.read_secret() == secret
    may_read = "SELECT has_table_privilege($1, $2, 'SELECT')"
    table = f"{schema}.asgi_durable_secrets"
    assert (await fetch(own_postgres.url, may_read, readers, table))[0][0] is False
    await fetch(own_postgres.url, f"DROP OWNED BY {readers}")
    await fetch(own_postgres.url, f"DROP ROLE {readers}")


async def test_a_role_that_may_not_read_the_secret_is_told_so(
    own_postgres: PostgresServer, new_storage: Adapter, role: str
) -> None:
    async with opened(new_storage.url) as owner:
        schema = await schema_of(owner)
    rights = "SELECT, INSERT, UPDATE, DELETE"
    await fetch(own_postgres.url, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    await fetch(own_postgres.url, f"GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO {role}")
    await fetch(own_postgres.url, f"REVOKE ALL ON {schema}.asgi_durable_secrets FROM {role}")

    with pytest.raises(StorageError, match=r"asgi_durable_secrets.*grant it"):
        await PostgresStorage(new_storage.url.replace("//postgres@", f"//{role}@")).open()


async def test_a_database_that_has_no_connection_left_is_unavailable(
    own_postgres: PostgresServer, new_storage: Adapter, role: str
) -> None:
    await fetch(own_postgres.url, f"ALTER ROLE {role} CONNECTION LIMIT 0")

    with pytest.raises(StorageUnavailableError, match="too many connections"):
        await PostgresStorage(new_storage.url.replace("//postgres@", f"//{role}@")).open()


# Errors


@pytest.mark.parametrize("password", [PASSWORD, f"{PASSWORD}%40%2F"])
async def test_a_server_that_cannot_be_reached_is_named_without_its_password(password: str) -> None:
    storage = PostgresStorage(f"postgresql://somebody:{password}@127.0.0.1:1/orders")

    with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1") as caught:
        await storage.open()

    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in repr(storage)


@pytest.mark.parametrize("mark", "@/#?")
def test_a_password_that_is_not_encoded_is_a_mistake_that_does_not_show_it(mark: str) -> None:
    with pytest.raises(DurableUsageError, match="percent-encoded") as caught:
        PostgresStorage(f"postgresql://somebody:{PASSWORD}{mark}@127.0.0.1:1/orders")

    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


async def test_a_server_that_refuses_is_named_without_the_password(
    own_postgres: PostgresServer,
) -> None:
    url = own_postgres.url_of(f"nobody:{PASSWORD}")

    with pytest.raises(StorageError, match=r"127\.0\.0\.1") as caught:
        await PostgresStorage(url).open()

    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


async def test_a_database_that_is_missing_is_named(own_postgres: PostgresServer) -> None:
    with pytest.raises(StorageError, match="missing"):
        await PostgresStorage(f"{own_postgres.url.removesuffix('postgres')}missing").open()


async def test_a_name_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(StorageUnavailableError, match=r"nowhere\.invalid"):
        await PostgresStorage("postgresql://nowhere.invalid/orders").open()


# The number of statements


@pytest.fixture
async def logged(own_postgres_url: str) -> AsyncIterator[Storage]:
    """An open storage with ``executor-1``, whose statements the server logs."""
    async with opened(logging_statements(own_postgres_url)) as storage:
        await enter(storage)
        yield storage


@pytest.fixture
def statement_log(own_postgres: PostgresServer, logged: Storage) -> StatementLog:
    return StatementLog(own_postgres)


def starts(count: int, prefix: str) -> list[Write]:
    return [StartWorkflow(workflow(f"{prefix}{n:04}")) for n in range(count)]


def steps(count: int, prefix: str) -> list[Write]:
    return [record(step(f"{prefix}{n:04}")) for n in range(count)]


def ends(count: int, prefix: str) -> list[Write]:
    return [success(f"{prefix}{n:04}") for n in range(count)]


@pytest.mark.needs_sessions("where nothing is prepared each statement has a BEGIN and a COMMIT")
@pytest.mark.parametrize("kind", ["starts", "steps", "ends", "whole workflows"])
async def test_a_batch_takes_as_many_statements_whatever_its_size(
    logged: Storage, statement_log: StatementLog, kind: str
) -> None:
    counts = {}
    for size in (1, 10, 300):
        rows = starts(size, f"{size}-"), steps(size, f"{size}-"), ends(size, f"{size}-")
        before, batch = {
            "starts": ([], rows[0]),
            "steps": (rows[0], rows[1]),
            "ends": (rows[0], rows[2]),
            "whole workflows": ([], rows[0] + rows[1] + rows[2]),
        }[kind]
        await logged.commit(before)
        statement_log.new_statements()
        assert set(await kinds(logged, *batch)) == {DONE}
        counts[size] = statement_log.new_statements()

    assert counts[1]
    assert len(counts[10]) == len(counts[300]), counts
    assert len(counts[1]) <= len(counts[10]), counts


@pytest.mark.needs_sessions("where nothing is prepared each statement has a BEGIN and a COMMIT")
async def test_a_beat_of_an_idle_executor_is_one_statement_at_most(
    logged: Storage, statement_log: StatementLog
) -> None:
    await is_alive(logged)
    statement_log.new_statements()

    for _ in range(10):
        assert await is_alive(logged)

    assert len(statement_log.new_statements()) <= 10


# Isolation


def names(results: list[object]) -> list[str]:
    return sorted("done" if result is None else type(result).__name__ for result in results)


async def test_one_of_two_transactions_that_conflict_is_given_up(
    storage: Storage,
) -> None:
    await storage.commit([StartWorkflow(workflow("w0")), StartWorkflow(workflow("w1"))])
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE accounts (amount int)"))
    both_have_read = asyncio.Barrier(2)

    async def withdraw(workflow_id: str) -> None:
        slot = StepSlot(workflow_id=workflow_id, step_number=0, executor_id=EXECUTOR)
        async with storage.transaction(slot, isolation_level="SERIALIZABLE") as transaction:
            await transaction.session.execute(sa.text("SELECT sum(amount) FROM accounts"))
            await both_have_read.wait()
            await transaction.session.execute(sa.text("INSERT INTO accounts VALUES (-1)"))
            await transaction.record(step(workflow_id))

    results = await asyncio.gather(withdraw("w0"), withdraw("w1"), return_exceptions=True)

    assert names(results) == ["GivenUpError", "done"]
    runs = await storage.load_runs(["w0", "w1"])
    assert sorted(len(run.steps) for run in runs) == [0, 1]


async def test_one_of_transactions_that_wait_for_each_other_is_given_up(storage: Storage) -> None:
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE accounts (name text)"))
        await transaction.session.execute(sa.text("INSERT INTO accounts VALUES ('a'), ('b')"))
    both_have_locked = asyncio.Barrier(2)
    lock = sa.text("SELECT name FROM accounts WHERE name = :name FOR UPDATE")

    async def lock_both(first: str, second: str) -> None:
        async with storage.transaction(None) as transaction:
            await transaction.session.execute(lock, {"name": first})
            await both_have_locked.wait()
            await transaction.session.execute(lock, {"name": second})

    results = await asyncio.gather(lock_both("a", "b"), lock_both("b", "a"), return_exceptions=True)

    assert names(results) == ["GivenUpError", "done"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "READ COMMITTED"])
async def test_a_transaction_has_the_isolation_level_that_was_asked_for(
    storage: Storage, level: str
) -> None:
    async with storage.transaction(None, isolation_level=level) as transaction:
        result = await transaction.session.execute(sa.text("SHOW transaction_isolation"))
        assert result.scalar_one() == level.lower()

    async with storage.transaction(None) as transaction:
        result = await transaction.session.execute(sa.text("SHOW transaction_isolation"))
        assert result.scalar_one() == "read committed"


async def test_leases_are_measured_by_the_servers_clock_alone(
    storage: Storage, open_storage: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await open_storage(OTHER)
    now = time.time()

    monkeypatch.setattr(time, "time", lambda: now + 3600.0)
    monkeypatch.setattr(time, "time_ns", lambda: int((now + 3600.0) * 1e9))
    for _ in range(3):
        await beat(other, OTHER)
    monkeypatch.undo()

    assert await is_alive(storage)
