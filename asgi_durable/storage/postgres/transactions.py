"""Transactions of the application on PostgreSQL, on the application's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, AsyncTransaction

from asgi_durable.errors import DurableUsageError
from asgi_durable.storage import tables
from asgi_durable.storage.application import SESSION_OPTIONS, ended_behind_the_session
from asgi_durable.storage.postgres.database import PostgresDatabase
from asgi_durable.storage.postgres.rows import OWNED, PostgresNames, columns, step_values
from asgi_durable.storage.postgres.sessions import PostgresSessions
from asgi_durable.storage.protocol import SlotTakenError, StepSlot
from asgi_durable.storage.records import StepRecord

__all__ = ["PostgresTransaction", "PostgresTransactions"]

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
        raw = await self._connection.get_raw_connection()
        driver: Any = raw.driver_connection
        if not self._transaction.is_active or (self._has_begun and not driver.is_in_transaction()):
            # There is no savepoint left to go back to, which the session would trip over.
            await self._connection.invalidate()
            raise ended_behind_the_session()
        # Invariant: the application's rows are flushed before the record, and both are in the
        # transaction that `PostgresTransactions.transaction` commits.
        await self.session.commit()
        values = (slot.executor_id, *step_values(step))
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
        self._sessions = PostgresSessions(database)
        self._check = (
            f"SELECT EXISTS (SELECT 1 FROM {names.workflows} AS w "
            f"JOIN {names.executors} AS e ON e.executor_id = w.executor_id "
            f"WHERE w.workflow_id = $2::text AND {OWNED} AND e.state = 'ALIVE') "
            f"AND NOT EXISTS (SELECT 1 FROM {names.steps} AS s "
            "WHERE s.workflow_id = $2::text AND s.step_number = $3::int4)"
        )
        # The executor is $1, as in OWNED, and the row follows.
        # Invariant: the fence is locked by the last statement before the COMMIT, so that a
        # takeover never waits for the application; and if the process stops between the two,
        # the server ends the transaction. So is the workflow's row: in an older snapshot it
        # may be this executor's still.
        self._record = (
            f"WITH executor AS MATERIALIZED ({names.fence('$1::text')}), pause AS MATERIALIZED ("
            f"SELECT set_config('idle_in_transaction_session_timeout', '{LONGEST_PAUSE}', true)) "
            f"INSERT INTO {names.steps} ({', '.join(columns(tables.steps))}) "
            "SELECT $2::text, $3::int4, $4::text, $5::bytea, $6::bytea, $7::bytea, $8::int8 "
            f"FROM {names.workflows} AS w, executor, pause WHERE w.workflow_id = $2::text "
            f"AND {OWNED} FOR SHARE OF w ON CONFLICT DO NOTHING"
        )

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
                await self._check_slot(connection, slot)
            transaction = await connection.begin()
            async with AsyncSession(connection, **SESSION_OPTIONS) as session:
                record = (self._record, slot) if slot is not None else None
                yield PostgresTransaction(connection, transaction, session, record)
                await session.commit()
            await connection.commit()

    async def _check_slot(self, connection: AsyncConnection, slot: StepSlot) -> None:
        """Check the place, before the transaction begins.

        Not in it: what a SERIALIZABLE transaction reads of our tables would bring it into
        conflict with those of other workflows.
        """
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        values = (slot.executor_id, slot.workflow_id, slot.step_number)
        if self._database.prepared_statements:
            is_free = await driver.fetchval(self._check, *values)
        else:
            async with driver.transaction():
                is_free = await driver.fetchval(self._check, *values)
        if not is_free:
            raise _slot_taken(slot)


def _slot_taken(slot: StepSlot) -> SlotTakenError:
    return SlotTakenError(f"step {slot.step_number} of workflow {slot.workflow_id!r} is not free")
