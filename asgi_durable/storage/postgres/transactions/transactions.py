"""Opens and commits transactions of the application, on event loops and in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asgi_durable.storage.application import SESSION_OPTIONS
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.rows import PostgresNames
from asgi_durable.storage.postgres.transactions.open_transactions import (
    OpenRequestTransaction,
    OpenStepTransaction,
    TransactionCore,
)
from asgi_durable.storage.postgres.transactions.sessions import (
    PostgresBlockingSessions,
    PostgresSessions,
    synchronous,
)
from asgi_durable.storage.records import StepRecord
from asgi_durable.storage.transaction_port import RequestSlot, StepSlot
from asgi_durable.storage.writes import FinishWorkflow

__all__ = [
    "PostgresBlockingTransactions",
    "PostgresRequestTransaction",
    "PostgresTransaction",
    "PostgresTransactions",
]


class PostgresTransaction:
    """See :class:`asgi_durable.storage.transaction_port.StoredTransaction`."""

    def __init__(self, session: AsyncSession, opened: OpenStepTransaction) -> None:
        self.session = session
        self._opened = opened

    async def record(self, step: StepRecord) -> None:
        await self.session.run_sync(lambda _: self._opened.record(step))


class PostgresRequestTransaction:
    """See :class:`asgi_durable.storage.transaction_port.RequestTransaction`."""

    def __init__(self, session: AsyncSession, opened: OpenRequestTransaction) -> None:
        self.session = session
        self._opened = opened

    async def flush(self) -> None:
        await self.session.run_sync(lambda _: self._opened.flush())

    async def store_response(self, end: FinishWorkflow) -> None:
        await self.session.run_sync(lambda _: self._opened.store_response(end))


class PostgresTransactions:
    """Opens transactions of ``async`` code.

    Args:
        database: The database.
        names: The tables' names.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._sessions = PostgresSessions(database)
        self._core = TransactionCore(self._sessions.driver, names, database.name)

    async def open(self) -> None:
        """Prepare for any number of event loops."""
        await self._sessions.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._sessions.close()

    @asynccontextmanager
    async def transaction(
        self, slot: StepSlot | None, isolation_level: str | None
    ) -> AsyncIterator[PostgresTransaction]:
        """See ``Transactions.transaction``."""
        core = self._core
        async with self._sessions.connect(isolation_level) as connection:
            transaction = await connection.run_sync(core.begin_step, slot)
            async with AsyncSession(connection, **SESSION_OPTIONS) as session:
                opened = OpenStepTransaction(
                    core, synchronous(connection), transaction, session.sync_session, slot
                )
                yield PostgresTransaction(session, opened)
                await session.commit()
            await self._sessions.commit(connection)

    @asynccontextmanager
    async def request_transaction(
        self, slot: RequestSlot, isolation_level: str | None
    ) -> AsyncIterator[PostgresRequestTransaction]:
        """See ``Transactions.request_transaction``."""
        core = self._core
        async with self._sessions.connect(isolation_level) as connection:
            transaction = await connection.run_sync(core.begin_request, slot)
            async with AsyncSession(connection, **SESSION_OPTIONS) as session:
                opened = OpenRequestTransaction(
                    core, synchronous(connection), transaction, session.sync_session, slot
                )
                yield PostgresRequestTransaction(session, opened)
                await session.commit()
            await self._sessions.commit(connection)


class PostgresBlockingTransactions:
    """Opens transactions of ``def`` code, in the calling thread.

    Args:
        database: The database.
        names: The tables' names.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._sessions = PostgresBlockingSessions(database)
        self._core = TransactionCore(self._sessions.driver, names, database.name)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._sessions.close()

    @contextmanager
    def transaction(
        self, slot: StepSlot | None, isolation_level: str | None
    ) -> Iterator[OpenStepTransaction]:
        """See ``Transactions.blocking_transaction``."""
        core = self._core
        with self._sessions.connect(isolation_level) as connection:
            transaction = core.begin_step(connection, slot)
            with Session(connection, **SESSION_OPTIONS) as session:
                yield OpenStepTransaction(core, connection, transaction, session, slot)
                session.commit()
            self._sessions.commit(connection)

    @contextmanager
    def request_transaction(
        self, slot: RequestSlot, isolation_level: str | None
    ) -> Iterator[OpenRequestTransaction]:
        """See ``Transactions.blocking_request_transaction``."""
        core = self._core
        with self._sessions.connect(isolation_level) as connection:
            transaction = core.begin_request(connection, slot)
            with Session(connection, **SESSION_OPTIONS) as session:
                yield OpenRequestTransaction(core, connection, transaction, session, slot)
                session.commit()
            self._sessions.commit(connection)
