"""Connections of the application's transactions: each returns to its pool as it was taken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol

import pytest
import sqlalchemy as sa
from support.cancelling import cancel_at_each_await
from support.databases.storages import POSTGRES, Adapter, enter, until
from support.records import EXECUTOR, request, step, workflow

from asgi_durable import StorageUnavailableError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.rows import PostgresNames
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import (
    RequestSlot,
    SlotBusyError,
    SlotTakenError,
    StepSlot,
)
from asgi_durable.storage.writes import StartWorkflow

pytest.importorskip("psycopg")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.needs_sessions("a pooler takes no setting of the server in a URL"),
]

SLOT = StepSlot(workflow_id="w", step_number=0, executor_id=EXECUTOR)
REQUEST = RequestSlot(workflow=request(), wait_seconds=0.1)
INSERT = "INSERT INTO effects VALUES ('x')"
SETTINGS = (
    "transaction_isolation",
    "lock_timeout",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "search_path",
)


class Open(Protocol):
    """Opens transactions of one kind, ``async`` or not; gives what executes statements there."""

    def __call__(
        self, slot: StepSlot | RequestSlot | None, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[Execute]: ...


class Execute(Protocol):
    async def __call__(self, statement: str) -> Any: ...


@pytest.fixture
def lock_timeout() -> str:
    return "200ms"


@pytest.fixture
async def storage(postgres_url: str, lock_timeout: str) -> AsyncIterator[Storage]:
    """A storage with one connection for each kind of transaction, which does not wait for locks."""
    url = f"{postgres_url}&pool_size=1&lock_timeout={lock_timeout}"
    storage = Adapter(url=url, **POSTGRES)()
    await storage.open()
    await enter(storage)
    await storage.commit([StartWorkflow(workflow())])
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (name text)"))
    yield storage
    await storage.close()


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[Storage]:
    """Another storage on the same database."""
    other = Adapter(url=postgres_url, **POSTGRES)()
    await other.open()
    yield other
    await other.close()


@pytest.fixture(params=["async", "blocking"])
def open_transaction(request: pytest.FixtureRequest, storage: Storage) -> Open:
    return in_task(storage) if request.param == "async" else in_thread(storage)


def in_task(storage: Storage) -> Open:
    @asynccontextmanager
    async def opened(
        slot: StepSlot | RequestSlot | None, isolation_level: str | None = None
    ) -> AsyncIterator[Execute]:
        opening: Any = (
            storage.request_transaction if isinstance(slot, RequestSlot) else storage.transaction
        )
        async with opening(slot, isolation_level=isolation_level) as transaction:

            async def execute(statement: str) -> Any:
                return await transaction.session.execute(sa.text(statement))

            yield execute
            if isinstance(slot, StepSlot):
                await transaction.record(step())

    return opened


def in_thread(storage: Storage) -> Open:
    @contextmanager
    def blocking(slot: StepSlot | RequestSlot | None, isolation_level: str | None) -> Any:
        opening: Any = (
            storage.blocking_request_transaction
            if isinstance(slot, RequestSlot)
            else storage.blocking_transaction
        )
        with opening(slot, isolation_level=isolation_level) as transaction:
            yield transaction.session
            if isinstance(slot, StepSlot):
                transaction.record(step())

    @asynccontextmanager
    async def opened(
        slot: StepSlot | RequestSlot | None, isolation_level: str | None = None
    ) -> AsyncIterator[Execute]:
        manager = blocking(slot, isolation_level)
        session = await asyncio.to_thread(manager.__enter__)

        async def execute(statement: str) -> Any:
            return await asyncio.to_thread(session.execute, sa.text(statement))

        try:
            yield execute
        except Exception as error:
            if not await asyncio.to_thread(
                manager.__exit__, type(error), error, error.__traceback__
            ):
                raise
        else:
            await asyncio.to_thread(manager.__exit__, None, None, None)

    return opened


@asynccontextmanager
async def locked_log(other: Storage, postgres_url: str) -> AsyncIterator[None]:
    """Let all that is asked of the workflows wait, as a migration does."""
    names = PostgresNames(PostgresDatabase.from_url(postgres_url).schema)
    async with other.transaction(None) as transaction:
        statement = f"LOCK TABLE {names.workflows} IN ACCESS EXCLUSIVE MODE"
        await transaction.session.execute(sa.text(statement))
        yield


async def settings(open_transaction: Open) -> list[str]:
    """Return what holds in a plain transaction."""
    async with open_transaction(None) as execute:
        found = [(await execute(f"SHOW {name}")).scalar_one() for name in SETTINGS]
        pid = (await execute("SELECT pg_backend_pid()")).scalar_one()
    return [*found, str(pid)]


async def fail_the_check(
    open_transaction: Open, other: Storage, postgres_url: str, isolation_level: str | None = None
) -> None:
    async with locked_log(other, postgres_url):
        await fail(open_transaction, isolation_level)


async def fail(open_transaction: Open, isolation_level: str | None = None) -> None:
    with pytest.raises(StorageUnavailableError):
        async with open_transaction(SLOT, isolation_level):
            pass


@pytest.mark.parametrize("isolation_level", [None, "SERIALIZABLE"])
async def test_a_plain_transaction_is_one_after_a_check_that_took_too_long(
    open_transaction: Open, other: Storage, postgres_url: str, isolation_level: str | None
) -> None:
    await fail_the_check(open_transaction, other, postgres_url, isolation_level)

    async with open_transaction(None) as execute:
        await execute(INSERT)
    with pytest.raises(ZeroDivisionError):
        async with open_transaction(None) as execute:
            await execute(INSERT)
            raise ZeroDivisionError

    async with other.transaction(None) as transaction:
        found = await transaction.session.execute(sa.text("SELECT count(*) FROM effects"))
        assert found.scalar_one() == 1


async def test_a_claim_is_rolled_back_after_a_check_that_took_too_long(
    open_transaction: Open, other: Storage, postgres_url: str
) -> None:
    await fail_the_check(open_transaction, other, postgres_url)

    with pytest.raises(ZeroDivisionError):
        async with open_transaction(REQUEST) as execute:
            await execute("SELECT 1")
            raise ZeroDivisionError

    assert await other.get_workflow("r") is None


async def test_a_step_is_recorded_after_a_check_that_took_too_long(
    open_transaction: Open, other: Storage, postgres_url: str
) -> None:
    await fail_the_check(open_transaction, other, postgres_url)

    async with open_transaction(SLOT) as execute:
        await execute(INSERT)

    (run,) = await other.load_runs(["w"])
    assert len(run.steps) == 1


@pytest.mark.parametrize("lock_timeout", ["60s"])
async def test_a_connection_that_is_lost_during_its_check_is_replaced(
    open_transaction: Open, other: Storage, postgres_url: str
) -> None:
    (*_, pid) = await settings(open_transaction)
    async with locked_log(other, postgres_url):
        check = asyncio.create_task(fail(open_transaction))
        await until(lambda: ended_where_it_waits(other, pid))
        await check

    (*_, other_pid) = await settings(open_transaction)
    assert other_pid != pid
    async with open_transaction(SLOT) as execute:
        await execute(INSERT)


async def ended_where_it_waits(other: Storage, pid: str) -> bool:
    """End a connection from the server's side, if it waits for a lock."""
    statement = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE pid = {pid} AND wait_event_type = 'Lock'"
    )
    async with other.transaction(None) as transaction:
        return (await transaction.session.execute(sa.text(statement))).scalar() is True


@pytest.mark.parametrize("and_after", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize("prepared_statements", ["true", "false"])
async def test_a_connection_has_no_transaction_after_a_cancellation(
    storage: Storage, postgres_url: str, prepared_statements: str, *, and_after: bool
) -> None:
    url = f"{postgres_url}&pool_size=1&prepared_statements={prepared_statements}"
    unused = Adapter(url=url, **POSTGRES)()

    async def work() -> None:
        async with unused.transaction(SLOT) as transaction:
            await transaction.session.execute(sa.text(INSERT))

    async def check() -> None:
        async with unused.transaction(None) as transaction:
            await transaction.session.execute(sa.text(INSERT))

    await unused.open()
    try:
        assert await cancel_at_each_await(work, check, and_after=and_after) > 3
    finally:
        await unused.close()


@pytest.mark.parametrize("slot", [None, SLOT, REQUEST])
async def test_a_connection_comes_back_with_its_settings_whatever_failed(
    open_transaction: Open, other: Storage, postgres_url: str, slot: StepSlot | RequestSlot | None
) -> None:
    before = await settings(open_transaction)

    with pytest.raises(ZeroDivisionError):
        async with open_transaction(slot, "REPEATABLE READ") as execute:
            await execute("SET search_path TO nowhere")
            await execute("SET LOCAL statement_timeout = '1h'")
            raise ZeroDivisionError
    assert await settings(open_transaction) == before

    async with locked_log(other, postgres_url):
        with contextlib.suppress(StorageUnavailableError, SlotBusyError):
            async with open_transaction(slot, "SERIALIZABLE"):
                pass
    assert await settings(open_transaction) == before

    with contextlib.suppress(SlotTakenError):
        async with open_transaction(
            StepSlot(workflow_id="w", step_number=0, executor_id="nobody"), "SERIALIZABLE"
        ):
            pass
    assert await settings(open_transaction) == before
