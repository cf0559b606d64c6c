"""Transactions on a connection that falls silent: recorded or not, and committed exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import sqlalchemy as sa
from support.databases.proxy import Proxy
from support.databases.storages import PATIENCE_SECONDS, POSTGRES, Adapter, enter, until
from support.records import EXECUTOR, step, workflow

from asgi_durable import Durable, StorageUnavailableError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.rows import PostgresNames
from asgi_durable.storage.postgres.transactions.transactions import PostgresTransactions
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import StepSlot
from asgi_durable.storage.writes import StartWorkflow

pytestmark = pytest.mark.anyio

# The wait before the server is asked about a statement.
WAIT_SECONDS = 0.5
SLOT = StepSlot(workflow_id="w", step_number=0, executor_id=EXECUTOR)


@pytest.fixture
async def storage(own_postgres_url: str) -> AsyncIterator[Storage]:
    """A storage whose connections are never silent, with the workflow ``w``."""
    storage = Adapter(url=own_postgres_url, **POSTGRES)()
    await storage.open()
    await enter(storage)
    await storage.commit([StartWorkflow(workflow())])
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (workflow_id text)"))
    yield storage
    await storage.close()


@pytest.fixture
async def transactions(storage: Storage, proxied_url: str) -> AsyncIterator[PostgresTransactions]:
    database = PostgresDatabase.from_url(f"{proxied_url}&command_timeout={WAIT_SECONDS}")
    transactions = PostgresTransactions(database, PostgresNames(database.schema))
    await transactions.open()
    yield transactions
    async with asyncio.timeout(PATIENCE_SECONDS):
        await transactions.close()


async def write(transactions: PostgresTransactions, before_commit: Callable[[], None]) -> None:
    async with transactions.transaction(SLOT, None) as transaction:
        await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('w')"))
        await transaction.record(step())
        before_commit()


@pytest.mark.needs_sessions("a pooler's connections to its server are no business of ours")
@pytest.mark.parametrize("delivers", [False, True])
async def test_a_commit_without_an_answer_is_done_or_not_and_found_by_the_retry(
    storage: Storage,
    proxy: Proxy,
    transactions: PostgresTransactions,
    delivers: bool,
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StorageUnavailableError):
            await write(transactions, lambda: proxy.fall_silent(delivers=delivers))
    (run,) = await storage.load_runs(["w"])
    assert len(run.steps) == int(delivers)

    if not delivers:
        await write(transactions, lambda: None)

    (run,) = await storage.load_runs(["w"])
    async with storage.transaction(None) as transaction:
        effects = await transaction.session.execute(sa.text("SELECT count(*) FROM effects"))
    assert (len(run.steps), effects.scalar_one()) == (1, 1)


@pytest.mark.needs_sessions("a pooler's connections to its server are no business of ours")
async def test_the_look_at_the_place_fails_on_a_silent_connection_of_the_pool(
    storage: Storage, proxy: Proxy, transactions: PostgresTransactions
) -> None:
    async with transactions.transaction(None, None) as transaction:
        await transaction.session.execute(sa.text("SELECT 1"))
    proxy.fall_silent()

    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StorageUnavailableError):
            await write(transactions, lambda: None)
        await write(transactions, lambda: None)


# The engine


@pytest.mark.parametrize("delivers", [False, True])
@pytest.mark.parametrize("where", ["in the step log", "beside the data"])
async def test_a_workflow_whose_transaction_falls_silent_goes_on_exactly_once(
    proxy: Proxy,
    proxied_url: str,
    storage: Storage,
    where: str,
    delivers: bool,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"{proxied_url}&command_timeout=1&connect_timeout=2"
    options = {"application_url": url} if where == "beside the data" else {}
    durable = Durable(sqlite_url if options else url, drain_timeout=0.0, **options)
    falls_silent = True

    @durable.transaction
    async def insert() -> str:
        nonlocal falls_silent
        if falls_silent:
            falls_silent = False
            proxy.fall_silent(new_connections=True, delivers=delivers)
        await durable.session.execute(sa.text("INSERT INTO effects VALUES ('w')"))
        return "inserted"

    @durable.workflow
    async def work() -> str:
        return await insert()

    async def is_given_up() -> bool:
        return "is silent, a connection is ended" in caplog.text

    async with durable, asyncio.timeout(PATIENCE_SECONDS):
        running = asyncio.create_task(durable.options(workflow_id="mine").run_workflow(work))
        await proxy.something_is_lost()
        await until(is_given_up)
        proxy.speak_again()
        assert await running == "inserted"

    async with storage.transaction(None) as transaction:
        effects = await transaction.session.execute(sa.text("SELECT count(*) FROM effects"))
    assert effects.scalar_one() == 1
