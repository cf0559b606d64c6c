"""Transactions of the application on PostgreSQL, on the application's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, AsyncTransaction

from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.application import SESSION_OPTIONS, ended_behind_the_session
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.rows import (
    PostgresNames,
    step_values,
    workflow_values,
)
from asgi_durable.storage.postgres.transactions.sessions import PostgresSessions
from asgi_durable.storage.postgres.transactions.slots import (
    RequestStatements,
    SlotStatements,
    answer_values,
    claiming,
    request_taken,
    slot_taken,
    whole_milliseconds,
)
from asgi_durable.storage.records import StepRecord
from asgi_durable.storage.transaction_port import RequestSlot, StepSlot
from asgi_durable.storage.writes import FinishWorkflow

__all__ = ["PostgresRequestTransaction", "PostgresTransaction", "PostgresTransactions"]


class _OpenTransaction:
    """A transaction, and the application's session in it."""

    def __init__(
        self,
        sessions: PostgresSessions,
        connection: AsyncConnection,
        transaction: AsyncTransaction,
        session: AsyncSession,
    ) -> None:
        self.session = session
        self._sessions = sessions
        self._connection = connection
        self._transaction = transaction
        self._has_begun = False
        # The driver's BEGIN comes with the first statement, which is this savepoint's.
        sa.event.listen(session.sync_session, "after_begin", self._note_begin)

    async def flush(self) -> None:
        """Write what the session holds, so that ours can be written after it."""
        raw = await self._connection.get_raw_connection()
        driver: Any = raw.driver_connection
        if not self._transaction.is_active or (self._has_begun and not driver.is_in_transaction()):
            # There is no savepoint left to go back to, which the session would trip over.
            await self._connection.invalidate()
            raise ended_behind_the_session()
        await self.session.commit()

    def _note_begin(self, *_: object) -> None:
        self._has_begun = True


class PostgresTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.StoredTransaction`."""

    def __init__(
        self,
        sessions: PostgresSessions,
        connection: AsyncConnection,
        transaction: AsyncTransaction,
        session: AsyncSession,
        record: tuple[str, StepSlot] | None,
    ) -> None:
        super().__init__(sessions, connection, transaction, session)
        self._record = record

    async def record(self, step: StepRecord) -> None:
        if self._record is None:
            msg = "this transaction has no place in a step log"
            raise DurableUsageError(msg)
        statement, slot = self._record
        # Invariant: the application's rows are flushed before the record, and both are in the
        # transaction that `PostgresTransactions.transaction` commits.
        await self.flush()
        values = (slot.executor_id, *step_values(step))
        with self._sessions.our_own_statements():
            result = await self._connection.exec_driver_sql(statement, values)
        if result.rowcount != 1:
            raise slot_taken(slot)


class PostgresRequestTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.RequestTransaction`."""

    def __init__(
        self,
        sessions: PostgresSessions,
        connection: AsyncConnection,
        transaction: AsyncTransaction,
        session: AsyncSession,
        answering: tuple[RequestStatements, RequestSlot],
    ) -> None:
        super().__init__(sessions, connection, transaction, session)
        self._statements, self._slot = answering
        # With the claim.
        self._has_begun = True

    async def answer(self, end: FinishWorkflow) -> None:
        # Again: what was read of an object meanwhile may have begun something.
        await self.flush()
        values = answer_values(end)
        with self._sessions.our_own_statements():
            for start in end.starts:
                row = workflow_values(start)
                await self._connection.exec_driver_sql(self._statements.start, row)
            result = await self._connection.exec_driver_sql(self._statements.answer, values)
        if result.rowcount != 1:
            raise request_taken(self._slot)


class PostgresTransactions:
    """Opens the application's transactions.

    Args:
        database: Where to.
        names: The tables' names.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._database = database
        self._sessions = PostgresSessions(database)
        self._statements = SlotStatements(names)
        self._request_statements = RequestStatements(names)

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
            if slot is not None:
                with self._sessions.our_own_statements():
                    await self._check_slot(connection, slot)
            transaction = await connection.begin()
            async with AsyncSession(connection, **SESSION_OPTIONS) as session:
                record = (self._statements.record, slot) if slot is not None else None
                yield PostgresTransaction(self._sessions, connection, transaction, session, record)
                await session.commit()
            await self._sessions.commit(connection)

    @asynccontextmanager
    async def request_transaction(
        self, slot: RequestSlot, isolation_level: str | None
    ) -> AsyncIterator[PostgresRequestTransaction]:
        """See ``Transactions.request_transaction``."""
        statements = self._request_statements
        async with self._sessions.connect(isolation_level) as connection:
            transaction = await connection.begin()
            with self._sessions.our_own_statements(), claiming(slot):
                values = (whole_milliseconds(slot), *workflow_values(slot.workflow))
                claimed = await connection.exec_driver_sql(statements.claim, values)
            if claimed.one().inserted != 1:
                raise request_taken(slot)
            async with AsyncSession(connection, **SESSION_OPTIONS) as session:
                answering = (statements, slot)
                yield PostgresRequestTransaction(
                    self._sessions, connection, transaction, session, answering
                )
                await session.commit()
            await self._sessions.commit(connection)

    async def _check_slot(self, connection: AsyncConnection, slot: StepSlot) -> None:
        """Check the place, before the transaction begins.

        Not in it: what a SERIALIZABLE transaction reads of our tables would bring it into
        conflict with those of other workflows.
        """
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        values = (slot.executor_id, slot.workflow_id, slot.step_number)
        if self._database.prepared_statements:
            is_free = await driver.fetchval(self._statements.check, *values)
        else:
            async with driver.transaction():
                is_free = await driver.fetchval(self._statements.check, *values)
        if not is_free:
            raise slot_taken(slot)
