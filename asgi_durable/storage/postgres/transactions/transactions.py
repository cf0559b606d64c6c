"""Transactions of the application on PostgreSQL, on the application's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from asgi_durable.storage.application import SESSION_OPTIONS
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.rows import PostgresNames
from asgi_durable.storage.postgres.transactions.open_transactions import (
    Openings,
    OpenRequestTransaction,
    OpenStepTransaction,
)
from asgi_durable.storage.postgres.transactions.sessions import PostgresSessions
from asgi_durable.storage.records import StepRecord
from asgi_durable.storage.transaction_port import RequestSlot, StepSlot
from asgi_durable.storage.writes import FinishWorkflow

__all__ = ["PostgresRequestTransaction", "PostgresTransaction", "PostgresTransactions"]


class PostgresTransaction:
    """See :class:`asgi_durable.storage.transaction_port.StoredTransaction`."""

    def __init__(
        self, connection: AsyncConnection, session: AsyncSession, opened: OpenStepTransaction
    ) -> None:
        self.session = session
        self._connection = connection
        self._opened = opened

    async def record(self, step: StepRecord) -> None:
        await self._connection.run_sync(lambda _: self._opened.record(step))


class PostgresRequestTransaction:
    """See :class:`asgi_durable.storage.transaction_port.RequestTransaction`."""

    def __init__(
        self, connection: AsyncConnection, session: AsyncSession, opened: OpenRequestTransaction
    ) -> None:
        self.session = session
        self._connection = connection
        self._opened = opened

    async def flush(self) -> None:
        await self._connection.run_sync(lambda _: self._opened.flush())

    async def store_response(self, end: FinishWorkflow) -> None:
        await self._connection.run_sync(lambda _: self._opened.store_response(end))


class PostgresTransactions:
    """Opens the application's transactions.

    Args:
        database: The database.
        names: The names of the tables.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._sessions = PostgresSessions(database)
        driver = AsyncpgDriver(prepares=database.prepared_statements)
        self._openings = Openings(driver, names, database=database.name)

    async def open(self) -> None:
        """Make ready for any number of event loops."""
        await self._sessions.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._sessions.close()

    @asynccontextmanager
    async def transaction(
        self, slot: StepSlot | None, isolation_level: str | None
    ) -> AsyncIterator[PostgresTransaction]:
        """See ``Transactions.transaction``."""
        async with self._sessions.connect(isolation_level) as connection:
            await connection.run_sync(self._openings.begin, slot)
            async with AsyncSession(connection, **SESSION_OPTIONS) as session:
                opened = self._openings.step_transaction(*_blocking(connection, session), slot)
                yield PostgresTransaction(connection, session, opened)
                await session.commit()
            await self._sessions.commit(connection)

    @asynccontextmanager
    async def request_transaction(
        self, slot: RequestSlot, isolation_level: str | None
    ) -> AsyncIterator[PostgresRequestTransaction]:
        """See ``Transactions.request_transaction``."""
        async with self._sessions.connect(isolation_level) as connection:
            await connection.run_sync(self._openings.begin_request, slot)
            async with AsyncSession(connection, **SESSION_OPTIONS) as session:
                opened = self._openings.request_transaction(*_blocking(connection, session), slot)
                yield PostgresRequestTransaction(connection, session, opened)
                await session.commit()
            await self._sessions.commit(connection)


class AsyncpgDriver:
    """See :class:`asgi_durable.storage.postgres.transactions.open_transactions.Driver`.

    Args:
        prepares: False behind a pooler that cannot hold prepared statements.
    """

    def __init__(self, *, prepares: bool) -> None:
        self._prepares = prepares

    def execute(self, connection: sa.Connection, statement: str, values: Sequence[object]) -> int:
        return connection.exec_driver_sql(statement, tuple(values)).rowcount

    def fetch_row(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Sequence[Any]:
        return connection.exec_driver_sql(statement, tuple(values)).one()

    def fetch_value(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Any:
        async def fetch(driver: Any) -> Any:
            if self._prepares:
                return await driver.fetchval(statement, *values)
            async with driver.transaction():
                return await driver.fetchval(statement, *values)

        adapted: Any = connection.connection.dbapi_connection
        return adapted.run_async(fetch)

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        driver: Any = connection.connection.driver_connection
        return bool(driver.is_in_transaction())


def _blocking(connection: AsyncConnection, session: AsyncSession) -> tuple[sa.Connection, Any]:
    """Return what SQLAlchemy wraps for async code, to be used inside of ``run_sync`` alone."""
    blocking = connection.sync_connection
    if blocking is None:
        msg = "the connection is not open"
        raise RuntimeError(msg)
    return blocking, session.sync_session
