"""Forgetting requests on Postgres: the locks it waits for, and its statements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from support.databases.postgres import PostgresServer
from support.databases.statement_log import StatementLog, logging_statements
from support.databases.storages import (
    POSTGRES,
    TINY_LEASE_SECONDS,
    Adapter,
    OpenStorage,
    beat,
    enter,
    until,
)
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable.storage.postgres import PostgresStorage
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.writes import (
    ClaimRequest,
    OutcomeKind,
    ReleaseWorkflow,
    StartWorkflow,
    Write,
)

pytestmark = pytest.mark.anyio

LONG_AGO = 1000
DOOMED = "doomed"


@pytest.fixture
def new_storage(own_postgres_url: str) -> Adapter:
    """Make storages on a schema of a server that no other test uses."""
    return Adapter(url=own_postgres_url, **POSTGRES)


def expired_request(workflow_id: str) -> list[Write]:
    """Return the writes of an expired request with a finished child."""
    child = f"{workflow_id}#0"
    end = success(workflow_id, response=response(workflow_id))
    return [
        ClaimRequest(request(workflow_id)),
        StartWorkflow(workflow(child, parent_id=workflow_id, parent_step=0)),
        record(step(child)),
        success(child),
        end,
    ]


async def sweep(storage: Storage) -> int:
    return await storage.forget_expired(LONG_AGO, abandoned_before_us=LONG_AGO, limit=1000)


@asynccontextmanager
async def transaction(
    server: PostgresServer, storage: Storage
) -> AsyncIterator[asyncpg.Connection]:
    """Open a transaction on a separate connection that finds our tables without a schema."""
    connection = await asyncpg.connect(server.url)
    try:
        schema = storage._names.quoted_schema  # type: ignore[attr-defined]
        await connection.execute(f"SET search_path TO {schema}")
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("table", ["expired", "released"])
async def test_a_sweep_waits_for_nobody_who_has_locked_a_request(
    own_postgres: PostgresServer, storage: Storage, table: str
) -> None:
    await storage.commit(expired_request("expired"))
    await storage.commit([ClaimRequest(request("released"))])
    await storage.commit([ReleaseWorkflow("released", EXECUTOR)])

    async with transaction(own_postgres, storage) as connection:
        await connection.execute(
            f"SELECT 1 FROM asgi_durable_workflows WHERE workflow_id = '{table}' FOR SHARE"
        )
        assert await sweep(storage) == 1
        assert await storage.get_workflow(table) is not None

    assert await sweep(storage) == 1
    assert await storage.get_workflow(table) is None


async def test_what_is_put_off_before_it_is_locked_stays(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    await storage.commit(expired_request("r"))

    async with transaction(own_postgres, storage) as connection:
        await connection.execute(
            "SELECT 1 FROM asgi_durable_workflows WHERE workflow_id = 'r' FOR UPDATE"
        )
        forgetting = asyncio.create_task(storage.forget_request("r", LONG_AGO))
        await until(lambda: somebody_waits(own_postgres))
        await connection.execute("UPDATE asgi_durable_responses SET expires_at_us = 5000")

    assert await forgetting
    assert await storage.get_workflow("r") is not None


async def test_what_is_finished_before_it_is_locked_is_claimed_anew(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    await storage.commit([ClaimRequest(request("r"))])

    async with transaction(own_postgres, storage) as connection:
        await connection.execute("UPDATE asgi_durable_workflows SET state = 'SUCCESS'")
        await connection.execute(
            "INSERT INTO asgi_durable_responses VALUES ('r', 200, '[]', NULL, 5000, 5000)"
        )
        forgetting = asyncio.create_task(storage.forget_request("r", LONG_AGO))
        await until(lambda: somebody_waits(own_postgres))

    assert await forgetting
    assert await storage.get_workflow("r") is not None


async def somebody_waits(server: PostgresServer) -> bool:
    connection = await asyncpg.connect(server.url)
    try:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    finally:
        await connection.close()


async def test_one_at_a_time_sweeps_a_schema(
    own_postgres: PostgresServer, storage: Storage, other: Storage
) -> None:
    await storage.commit(expired_request("r"))
    lock = storage._opened.parts.retention._sql.sweep_lock_key  # type: ignore[attr-defined]

    async with transaction(own_postgres, storage) as connection:
        await connection.execute(f"SELECT pg_advisory_xact_lock({0x73776570}, {lock})")
        assert [await sweep(storage), await sweep(other)] == [0, 0]

    assert await sweep(other) == 1


async def test_what_a_dead_executor_may_be_committing_still_is_not_abandoned(
    own_postgres: PostgresServer, storage: Storage, open_storage: OpenStorage
) -> None:
    doomed = await open_storage(DOOMED, lease_seconds=TINY_LEASE_SECONDS)
    await doomed.commit([ClaimRequest(request(executor_id=DOOMED))])

    async with transaction(own_postgres, storage) as connection:
        await connection.execute(
            f"SELECT 1 FROM asgi_durable_fences WHERE executor_id = '{DOOMED}' FOR KEY SHARE"
        )
        await until(lambda: is_declared_dead(storage))
        assert await sweep(storage) == 0

    await beat(storage)
    assert await sweep(storage) == 1
    assert await storage.get_workflow("r") is None


async def is_declared_dead(storage: Storage) -> bool:
    await beat(storage)
    progress = await storage.get_progress("r")
    return progress is not None and not progress.is_owned


@pytest.mark.needs_sessions("where nothing is prepared each statement has a BEGIN and a COMMIT")
async def test_a_sweep_takes_as_many_statements_whatever_it_finds(
    own_postgres: PostgresServer, own_postgres_url: str
) -> None:
    storage = PostgresStorage(logging_statements(own_postgres_url))
    await storage.open()
    try:
        await enter(storage)
        statement_log = StatementLog(own_postgres)
        counts = []
        # With the first one the driver asks about types that it does not know.
        for size in (2, 1, 100):
            await storage.commit([w for n in range(size) for w in expired_request(f"{size}-{n}")])
            statement_log.new_statements()
            assert await sweep(storage) == size
            counts.append(len(statement_log.new_statements()))
        assert await sweep(storage) == 0
        idle = statement_log.new_statements()
    finally:
        await storage.close()

    assert counts[1] == counts[2] <= 6
    assert len(idle) == 1


async def test_a_claim_that_meets_a_sweep_waits_for_it(
    own_postgres: PostgresServer, storage: Storage, other: Storage
) -> None:
    await storage.commit(expired_request("r"))

    async with transaction(own_postgres, storage) as connection:
        await connection.execute("DELETE FROM asgi_durable_workflows WHERE workflow_id = 'r'")
        await connection.execute("DELETE FROM asgi_durable_responses WHERE workflow_id = 'r'")
        claim = ClaimRequest(request(executor_id=OTHER))
        claiming = asyncio.create_task(other.commit([claim]))
        await until(lambda: somebody_waits(own_postgres))

    (outcome,) = await claiming
    found = await storage.get_workflow("r")
    assert outcome.kind.name == "DONE"
    assert found is not None
    assert found.executor_id == OTHER


async def test_a_claim_is_made_once_although_another_of_its_batch_is_tried_again(
    own_postgres: PostgresServer, storage: Storage
) -> None:
    await storage.commit([ClaimRequest(request("old"))])
    await storage.commit([ReleaseWorkflow("old", EXECUTOR)])
    claims = [ClaimRequest(request(i, updated_at_us=LONG_AGO)) for i in ("new", "old")]

    async with transaction(own_postgres, storage) as connection:
        await connection.execute(
            "SELECT 1 FROM asgi_durable_workflows WHERE workflow_id = 'old' FOR UPDATE"
        )
        claiming = asyncio.create_task(storage.commit(claims))
        await until(lambda: somebody_waits(own_postgres))
        await connection.execute("DELETE FROM asgi_durable_workflows WHERE workflow_id = 'old'")

    outcomes = await claiming
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.DONE, OutcomeKind.DONE]
    found = await storage.get_workflow("new")
    assert found is not None
    assert found.attempts == 1
