"""Transactions of the application on PostgreSQL, on the application's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    AsyncTransaction,
    create_async_engine,
)

from asgi_durable.errors import DurableUsageError, StorageError, StorageUnavailableError
from asgi_durable.storage import tables
from asgi_durable.storage.postgres_database import PostgresDatabase
from asgi_durable.storage.postgres_errors import application_error
from asgi_durable.storage.postgres_rows import PostgresNames, columns, step_values
from asgi_durable.storage.protocol import SlotTakenError, StepSlot
from asgi_durable.storage.records import StepRecord

__all__ = ["PostgresTransaction", "PostgresTransactions"]

ISOLATION_LEVELS = frozenset(
    {"READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"}
)
# Only from a transaction's record to its COMMIT, which follows at once.
LONGEST_PAUSE = "15s"


class PostgresTransaction:
    """See :class:`asgi_durable.storage.protocol.StoredTransaction`."""

    def __init__(
        self,
        connection: AsyncConnection,
        transaction: AsyncTransaction,
        session: AsyncSession,
        record: tuple[str, StepSlot] | None,
    ) -> None:
        self.session = session
        self._connection = connection
        self._transaction = transaction
        self._record = record
        self._has_begun = False
        # The driver's BEGIN comes with the first statement, which is this savepoint's.
        sa.event.listen(session.sync_session, "after_begin", self._note_begin)

    async def record(self, step: StepRecord) -> None:
        if self._record is None:
            msg = "this transaction has no place in a step log"
            raise DurableUsageError(msg)
        statement, slot = self._record
        # Invariant: the application's rows are flushed before the record, and both are in the
        # transaction that `PostgresTransactions.transaction` commits.
        await self.session.commit()
        raw = await self._connection.get_raw_connection()
        driver: Any = raw.driver_connection
        if not self._transaction.is_active or (self._has_begun and not driver.is_in_transaction()):
            msg = (
                "a transaction was ended behind the session's back, by a COMMIT or ROLLBACK in "
                "SQL or of its connection; use durable.session.commit() or leave it out"
            )
            raise DurableUsageError(msg)
        values = (*step_values(step), slot.executor_id)
        result = await self._connection.exec_driver_sql(statement, values)
        if result.rowcount != 1:
            raise _slot_taken(slot)

    def _note_begin(self, *_: object) -> None:
        self._has_begun = True


class PostgresTransactions:
    """Opens the application's transactions.

    Args:
        database: Where to.
        names: The tables' names.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._database = database
        self._engines = _Engines(database)
        self._check = (
            f"SELECT EXISTS (SELECT 1 FROM {names.workflows} AS w "
            f"JOIN {names.executors} AS e ON e.executor_id = w.executor_id "
            "WHERE w.workflow_id = $1::text AND w.executor_id = $3::text "
            "AND w.state = 'PENDING' AND e.state = 'ALIVE') "
            f"AND NOT EXISTS (SELECT 1 FROM {names.steps} AS s "
            "WHERE s.workflow_id = $1::text AND s.step_number = $2::int4)"
        )
        # Invariant: the fence is locked by the last statement before the COMMIT, so that a
        # takeover never waits for the application; and if the process stops between the two,
        # the server ends the transaction.
        self._record = (
            f"WITH executor AS MATERIALIZED ({names.fence('$8::text')}), pause AS MATERIALIZED ("
            f"SELECT set_config('idle_in_transaction_session_timeout', '{LONGEST_PAUSE}', true)) "
            f"INSERT INTO {names.steps} ({', '.join(columns(tables.steps))}) "
            "SELECT $1::text, $2::int4, $3::text, $4::bytea, $5::bytea, $6::bytea, $7::int8 "
            f"FROM {names.workflows} AS w, executor, pause WHERE w.workflow_id = $1::text "
            "AND w.executor_id = $8::text AND w.state = 'PENDING' ON CONFLICT DO NOTHING"
        )

    async def open(self) -> None:
        """Make ready for any number of event loops."""
        await self._engines.prepare()

    async def close(self) -> None:
        """Close all connections."""
        await self._engines.dispose()

    @asynccontextmanager
    async def transaction(
        self, slot: StepSlot | None, isolation_level: str | None
    ) -> AsyncIterator[PostgresTransaction]:
        """See ``Transactions.transaction``."""
        level = _checked(isolation_level)
        async with self._connected() as connection:
            if level is not None:
                await connection.execution_options(isolation_level=level)
            if slot is not None:
                await self._check_slot(connection, slot)
            transaction = await connection.begin()
            # A savepoint of the session's own: its commit() and rollback() in the
            # application's code cannot end the transaction that holds the record.
            async with AsyncSession(
                connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
            ) as session:
                record = (self._record, slot) if slot is not None else None
                yield PostgresTransaction(connection, transaction, session, record)
                await session.commit()
            await connection.commit()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        name = self._database.name
        opened = self._engines.here().connect()
        try:
            connection = await opened.start()
        except StorageError:
            raise
        except Exception as error:
            failure = application_error(error, name, is_lost=True)
            raise failure or StorageUnavailableError(f"{name}: {error}") from error
        try:
            yield connection
        except Exception as error:
            failure = application_error(error, name, is_lost=await _is_lost(connection))
            if failure is None:
                raise
            raise failure from error
        finally:
            await connection.close()

    async def _check_slot(self, connection: AsyncConnection, slot: StepSlot) -> None:
        """Check the place, before the transaction begins.

        Not in it: what a SERIALIZABLE transaction reads of our tables would bring it into
        conflict with those of other workflows.
        """
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        values = (slot.workflow_id, slot.step_number, slot.executor_id)
        if self._database.prepared_statements:
            is_free = await driver.fetchval(self._check, *values)
        else:
            async with driver.transaction():
                is_free = await driver.fetchval(self._check, *values)
        if not is_free:
            raise _slot_taken(slot)


class _Engines:
    """SQLAlchemy's engines: a pool for one event loop, single connections for any other.

    A pool of SQLAlchemy's belongs to one event loop. An application without a lifespan may be
    called on others, even at once.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._loop = asyncio.get_running_loop()
        self._pooled = _create_engine(database)
        self._single = _create_engine(database, poolclass=sa.NullPool)

    async def prepare(self) -> None:
        """Let the second engine do what it does on its first connection.

        It waits for that in a way that works on one event loop only.
        """
        async with self._single.connect():
            pass

    def here(self) -> AsyncEngine:
        """Return the engine for the running event loop."""
        return self._pooled if asyncio.get_running_loop() is self._loop else self._single

    async def dispose(self) -> None:
        """Close all connections; those of another event loop are left to the server."""
        is_here = asyncio.get_running_loop() is self._loop
        await self._pooled.dispose(close=is_here)
        await self._single.dispose()


def _create_engine(database: PostgresDatabase, **options: Any) -> AsyncEngine:
    adapting: dict[str, Any] = {}
    if not database.prepared_statements:
        # The unnamed statement: the next one replaces it, and none is left on a server
        # connection that a pooler gives to others.
        adapting = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}

    def connect() -> Any:
        dbapi: Any = engine.dialect.dbapi
        return dbapi.connect(async_creator_fn=database.connect, **adapting)

    engine = create_async_engine("postgresql+asyncpg://", creator=connect, **options)

    @sa.event.listens_for(engine.sync_engine, "checkout")
    def check(connection: Any, _record: object, _proxy: object) -> None:
        # It costs nothing, and finds what a server has closed that was started again.
        if connection.driver_connection.is_closed():
            raise sa.exc.DisconnectionError

    return engine


async def _is_lost(connection: AsyncConnection) -> bool:
    if connection.invalidated:
        return True
    raw = await connection.get_raw_connection()
    driver: asyncpg.Connection = raw.driver_connection
    return driver is None or driver.is_closed()


def _checked(isolation_level: str | None) -> str | None:
    if isolation_level is None:
        return None
    level = " ".join(isolation_level.upper().split())
    if level not in ISOLATION_LEVELS:
        known = ", ".join(sorted(ISOLATION_LEVELS))
        msg = f"isolation_level must be one of {known}; got {isolation_level!r}"
        raise DurableUsageError(msg)
    return level


def _slot_taken(slot: StepSlot) -> SlotTakenError:
    return SlotTakenError(f"step {slot.step_number} of workflow {slot.workflow_id!r} is not free")
