"""Transactions of the application in the file that holds the step log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from asgi_durable.storage import tables
from asgi_durable.storage.application import SESSION_OPTIONS, end_blocking_session, end_session
from asgi_durable.storage.records import StepRecord, WorkflowState
from asgi_durable.storage.sqlite.transactions.blocking_sessions import SQLiteBlockingSessions
from asgi_durable.storage.sqlite.transactions.sessions import SQLiteSessions
from asgi_durable.storage.transaction_port import SlotTakenError, StepSlot

__all__ = ["OpenBlockingTransaction", "OpenTransaction", "blocking_transaction", "transaction"]


class OpenTransaction:
    """A transaction, and the application's session in it."""

    def __init__(
        self, sessions: SQLiteSessions, connection: AsyncConnection, session: AsyncSession
    ) -> None:
        self.session = session
        self._sessions = sessions
        self._connection = connection

    async def flush(self) -> None:
        """Write what the session holds, so that ours can be written after it."""
        await end_session(self._sessions, self._connection, self.session)


class OpenBlockingTransaction:
    """The same in a thread."""

    def __init__(
        self, sessions: SQLiteBlockingSessions, connection: sa.Connection, session: Session
    ) -> None:
        self.session = session
        self._sessions = sessions
        self._connection = connection

    def flush(self) -> None:
        """Write what the session holds, so that ours can be written after it."""
        end_blocking_session(self._sessions, self._connection, self.session)


class SQLiteTransaction(OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.StoredTransaction`."""

    async def record(self, step: StepRecord) -> None:
        # Invariant: the application's rows are flushed before the record, and both are in
        # the transaction that `transaction` commits.
        await self.flush()
        await self._connection.execute(_insertion(step))


class SQLiteBlockingTransaction(OpenBlockingTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingTransaction`."""

    def record(self, step: StepRecord) -> None:
        # Invariant: as above.
        self.flush()
        self._connection.execute(_insertion(step))


@asynccontextmanager
async def transaction(
    sessions: SQLiteSessions, slot: StepSlot | None, isolation_level: str | None
) -> AsyncIterator[SQLiteTransaction]:
    """See ``Transactions.transaction``."""
    async with sessions.begin(isolation_level) as connection:
        if slot is not None:
            await connection.run_sync(_check_slot, slot)
        async with AsyncSession(connection, **SESSION_OPTIONS) as session:
            yield SQLiteTransaction(sessions, connection, session)
            await session.commit()
        await connection.commit()


@contextmanager
def blocking_transaction(
    sessions: SQLiteBlockingSessions, slot: StepSlot | None, isolation_level: str | None
) -> Iterator[SQLiteBlockingTransaction]:
    """See ``Transactions.blocking_transaction``."""
    with sessions.begin(isolation_level) as connection:
        if slot is not None:
            _check_slot(connection, slot)
        with Session(connection, **SESSION_OPTIONS) as session:
            yield SQLiteBlockingTransaction(sessions, connection, session)
            session.commit()
        connection.commit()


def _check_slot(connection: sa.Connection, slot: StepSlot) -> None:
    """Invariant: read under the write lock, so it still holds at this transaction's commit."""
    workflows, steps, executors = tables.workflows, tables.steps, tables.executors
    owned = sa.exists().where(
        workflows.c.workflow_id == slot.workflow_id,
        workflows.c.executor_id == slot.executor_id,
        workflows.c.state == WorkflowState.PENDING.value,
        executors.c.executor_id == workflows.c.executor_id,
        executors.c.state == "ALIVE",
    )
    recorded = sa.exists().where(
        steps.c.workflow_id == slot.workflow_id, steps.c.step_number == slot.step_number
    )
    is_free = connection.execute(sa.select(owned & ~recorded)).scalar_one()
    if not is_free:
        msg = f"step {slot.step_number} of workflow {slot.workflow_id!r} is not free"
        raise SlotTakenError(msg)


def _insertion(step: StepRecord) -> sa.Insert:
    values = {column.name: getattr(step, column.name) for column in tables.steps.columns}
    return sa.insert(tables.steps).values(values)
