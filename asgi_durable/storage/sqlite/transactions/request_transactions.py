"""Transactions of the application that claim a request and answer it, in one commit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asgi_durable.storage.application import SESSION_OPTIONS, ended_behind_the_session
from asgi_durable.storage.sqlite.commits.write_statements import (
    FINISH_WORKFLOW,
    INSERT_WORKFLOW,
    finish_parameters,
)
from asgi_durable.storage.sqlite.executors import LIVING
from asgi_durable.storage.sqlite.rows import INSERT_RESPONSE, response_values, workflow_values
from asgi_durable.storage.sqlite.transactions.blocking_sessions import SQLiteBlockingSessions
from asgi_durable.storage.sqlite.transactions.sessions import SQLiteSessions
from asgi_durable.storage.sqlite.transactions.transactions import (
    OpenBlockingTransaction,
    OpenTransaction,
)
from asgi_durable.storage.transaction_port import RequestSlot, SlotTakenError
from asgi_durable.storage.writes import FinishWorkflow

__all__ = ["blocking_request_transaction", "request_transaction"]


class SQLiteRequestTransaction(OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.RequestTransaction`."""

    async def answer(self, end: FinishWorkflow) -> None:
        # Again: what was read of an object meanwhile may have begun something.
        await self.flush()
        await self._connection.run_sync(_answer, end)


class SQLiteBlockingRequestTransaction(OpenBlockingTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingRequestTransaction`."""

    def answer(self, end: FinishWorkflow) -> None:
        # Again, as above.
        self.flush()
        _answer(self._connection, end)


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


def _claim(connection: sa.Connection, slot: RequestSlot) -> None:
    """Invariant: under the write lock, so both hold still at this transaction's commit."""
    workflow = slot.workflow
    living = connection.exec_driver_sql(f"{LIVING} AND executor_id = ?", (workflow.executor_id,))
    if living.first() is None:
        msg = f"the executor {workflow.executor_id!r} is not alive"
        raise SlotTakenError(msg)
    inserted = connection.exec_driver_sql(INSERT_WORKFLOW, workflow_values(workflow))
    if inserted.rowcount != 1:
        msg = f"there is a workflow {workflow.workflow_id!r}"
        raise SlotTakenError(msg)


def _answer(connection: sa.Connection, end: FinishWorkflow) -> None:
    if connection.exec_driver_sql(FINISH_WORKFLOW, finish_parameters(end)).rowcount != 1:
        raise ended_behind_the_session()
    if end.response is not None:
        connection.exec_driver_sql(INSERT_RESPONSE, response_values(end.response))
    for start in end.starts:
        connection.exec_driver_sql(INSERT_WORKFLOW, workflow_values(start))
