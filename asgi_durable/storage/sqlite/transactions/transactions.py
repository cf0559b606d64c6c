"""Transactions of the application in the file that holds the step log.

One commit makes durable the application's rows and the record of a step, or the application's rows
and the claim of a request with its response.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from asgi_durable.storage import tables
from asgi_durable.storage.application import (
    SESSION_OPTIONS,
    end_blocking_session,
    end_session,
    transaction_ended_error,
)
from asgi_durable.storage.records import StepRecord, WorkflowState
from asgi_durable.storage.sqlite.commits.write_statements import (
    FINISH_WORKFLOW,
    INSERT_WORKFLOW,
    finish_parameters,
)
from asgi_durable.storage.sqlite.executors import LIVING
from asgi_durable.storage.sqlite.rows import INSERT_RESPONSE, response_values, workflow_values
from asgi_durable.storage.sqlite.transactions.sessions import SQLiteBlockingSessions, SQLiteSessions
from asgi_durable.storage.transaction_port import RequestSlot, SlotTakenError, StepSlot
from asgi_durable.storage.writes import FinishWorkflow

__all__ = [
    "blocking_request_transaction",
    "blocking_transaction",
    "request_transaction",
    "transaction",
]


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


@asynccontextmanager
async def request_transaction(
    sessions: SQLiteSessions, slot: RequestSlot, isolation_level: str | None
) -> AsyncIterator[SQLiteRequestTransaction]:
    """See ``Transactions.request_transaction``."""
    async with sessions.begin(isolation_level) as connection:
        await connection.run_sync(_claim, slot)
        async with AsyncSession(connection, **SESSION_OPTIONS) as session:
            yield SQLiteRequestTransaction(sessions, connection, session)
            await session.commit()
        await connection.commit()


@contextmanager
def blocking_request_transaction(
    sessions: SQLiteBlockingSessions, slot: RequestSlot, isolation_level: str | None
) -> Iterator[SQLiteBlockingRequestTransaction]:
    """See ``Transactions.blocking_request_transaction``."""
    with sessions.begin(isolation_level) as connection:
        _claim(connection, slot)
        with Session(connection, **SESSION_OPTIONS) as session:
            yield SQLiteBlockingRequestTransaction(sessions, connection, session)
            session.commit()
        connection.commit()


class _OpenTransaction:
    """An open transaction and the application's session in it."""

    def __init__(
        self, sessions: SQLiteSessions, connection: AsyncConnection, session: AsyncSession
    ) -> None:
        self.session = session
        self._sessions = sessions
        self._connection = connection

    async def flush(self) -> None:
        """Flush the session, so that the library's rows can be written after its rows."""
        await end_session(self._sessions, self._connection, self.session)


class _OpenBlockingTransaction:
    """An open transaction in a thread, and the application's session in it."""

    def __init__(
        self, sessions: SQLiteBlockingSessions, connection: sa.Connection, session: Session
    ) -> None:
        self.session = session
        self._sessions = sessions
        self._connection = connection

    def flush(self) -> None:
        """Flush the session, so that the library's rows can be written after its rows."""
        end_blocking_session(self._sessions, self._connection, self.session)


class SQLiteTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.StoredTransaction`."""

    async def record(self, step: StepRecord) -> None:
        # Invariant: the application's rows are flushed before the record, and both are in
        # the transaction that `transaction` commits.
        await self.flush()
        await self._connection.execute(_insert_statement(step))


class SQLiteBlockingTransaction(_OpenBlockingTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingTransaction`."""

    def record(self, step: StepRecord) -> None:
        # Invariant: as in `SQLiteTransaction.record`.
        self.flush()
        self._connection.execute(_insert_statement(step))


class SQLiteRequestTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.RequestTransaction`."""

    async def store_response(self, end: FinishWorkflow) -> None:
        # Again: attributes that were read since the last flush may have changed the session.
        await self.flush()
        await self._connection.run_sync(_store_response, end)


class SQLiteBlockingRequestTransaction(_OpenBlockingTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingRequestTransaction`."""

    def store_response(self, end: FinishWorkflow) -> None:
        # Again: see `SQLiteRequestTransaction.store_response`.
        self.flush()
        _store_response(self._connection, end)


def _check_slot(connection: sa.Connection, slot: StepSlot) -> None:
    """Raise ``SlotTakenError`` if the executor does not own the workflow or the step is recorded.

    Invariant: this reads under the write lock, so it still holds at the commit.
    """
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


def _claim(connection: sa.Connection, slot: RequestSlot) -> None:
    """Insert the request, or raise ``SlotTakenError``.

    Invariant: this reads under the write lock, so the executor is still alive at the commit.
    """
    workflow = slot.workflow
    living = connection.exec_driver_sql(f"{LIVING} AND executor_id = ?", (workflow.executor_id,))
    if living.first() is None:
        msg = f"the executor {workflow.executor_id!r} is not alive"
        raise SlotTakenError(msg)
    inserted = connection.exec_driver_sql(INSERT_WORKFLOW, workflow_values(workflow))
    if inserted.rowcount != 1:
        msg = f"there is a workflow {workflow.workflow_id!r}"
        raise SlotTakenError(msg)


def _store_response(connection: sa.Connection, end: FinishWorkflow) -> None:
    if connection.exec_driver_sql(FINISH_WORKFLOW, finish_parameters(end)).rowcount != 1:
        raise transaction_ended_error()
    if end.response is not None:
        connection.exec_driver_sql(INSERT_RESPONSE, response_values(end.response))
    for start in end.starts:
        connection.exec_driver_sql(INSERT_WORKFLOW, workflow_values(start))


def _insert_statement(step: StepRecord) -> sa.Insert:
    values = {column.name: getattr(step, column.name) for column in tables.steps.columns}
    return sa.insert(tables.steps).values(values)
