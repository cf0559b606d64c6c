"""Transactions of the application on PostgreSQL, in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.application import (
    SESSION_OPTIONS,
    checked_isolation_level,
    ended_behind_the_session,
)
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.rows import (
    PostgresNames,
    step_values,
    workflow_values,
)
from asgi_durable.storage.postgres.transactions.blocking_sessions import (
    PostgresBlockingSessions,
    is_idle,
    outside_transactions,
)
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

__all__ = [
    "PostgresBlockingRequestTransaction",
    "PostgresBlockingTransaction",
    "PostgresBlockingTransactions",
]


class _OpenTransaction:
    """A transaction, and the application's session in it."""

    def __init__(
        self,
        sessions: PostgresBlockingSessions,
        connection: sa.Connection,
        transaction: sa.RootTransaction,
        session: Session,
    ) -> None:
        self.session = session
        self._sessions = sessions
        self._connection = connection
        self._transaction = transaction
        self._has_begun = False
        # The driver's BEGIN comes with the first statement, which is this savepoint's.
        sa.event.listen(session, "after_begin", self._note_begin)

    def flush(self) -> None:
        """Write what the session holds, so that ours can be written after it."""
        if not self._transaction.is_active or (self._has_begun and is_idle(self._connection)):
            # There is no savepoint left to go back to, which the session would trip over.
            self._connection.invalidate()
            raise ended_behind_the_session()
        self.session.commit()

    def _note_begin(self, *_: object) -> None:
        self._has_begun = True


class PostgresBlockingTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingTransaction`."""

    def __init__(
        self,
        sessions: PostgresBlockingSessions,
        connection: sa.Connection,
        transaction: sa.RootTransaction,
        session: Session,
        record: tuple[str, StepSlot] | None,
    ) -> None:
        super().__init__(sessions, connection, transaction, session)
        self._record = record

    def record(self, step: StepRecord) -> None:
        if self._record is None:
            msg = "this transaction has no place in a step log"
            raise DurableUsageError(msg)
        statement, slot = self._record
        # Invariant: the application's rows are flushed before the record, and both are in the
        # transaction that `PostgresBlockingTransactions.transaction` commits.
        self.flush()
        with self._sessions.our_own_statements():
            cursor = _execute(self._connection, statement, (slot.executor_id, *step_values(step)))
        if cursor.rowcount != 1:
            raise slot_taken(slot)


class PostgresBlockingRequestTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingRequestTransaction`."""

    def __init__(
        self,
        sessions: PostgresBlockingSessions,
        connection: sa.Connection,
        transaction: sa.RootTransaction,
        session: Session,
        answering: tuple[RequestStatements, RequestSlot],
    ) -> None:
        super().__init__(sessions, connection, transaction, session)
        self._statements, self._slot = answering
        # With the claim.
        self._has_begun = True

    def answer(self, end: FinishWorkflow) -> None:
        # Again: what was read of an object meanwhile may have begun something.
        self.flush()
        with self._sessions.our_own_statements():
            for start in end.starts:
                _execute(self._connection, self._statements.start, workflow_values(start))
            answer = _execute(self._connection, self._statements.answer, answer_values(end))
        if answer.rowcount != 1:
            raise request_taken(self._slot)


class PostgresBlockingTransactions:
    """Opens the application's transactions in threads.

    Args:
        database: Where to.
        names: The tables' names.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._sessions = PostgresBlockingSessions(database)
        self._statements = SlotStatements(names)
        self._request_statements = RequestStatements(names)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._sessions.close()

    @contextmanager
    def transaction(
        self, slot: StepSlot | None, isolation_level: str | None
    ) -> Iterator[PostgresBlockingTransaction]:
        """See ``Transactions.blocking_transaction``."""
        level = checked_isolation_level(isolation_level)
        with self._sessions.connect() as connection:
            if slot is not None:
                with self._sessions.our_own_statements():
                    self._check_slot(connection, slot)
            if level is not None:
                connection.execution_options(isolation_level=level)
            transaction = connection.begin()
            with Session(connection, **SESSION_OPTIONS) as session:
                record = (self._statements.record, slot) if slot is not None else None
                yield PostgresBlockingTransaction(
                    self._sessions, connection, transaction, session, record
                )
                session.commit()
            self._sessions.commit(connection)

    @contextmanager
    def request_transaction(
        self, slot: RequestSlot, isolation_level: str | None
    ) -> Iterator[PostgresBlockingRequestTransaction]:
        """See ``Transactions.blocking_request_transaction``."""
        level, statements = checked_isolation_level(isolation_level), self._request_statements
        with self._sessions.connect() as connection:
            if level is not None:
                connection.execution_options(isolation_level=level)
            transaction = connection.begin()
            with self._sessions.our_own_statements(), claiming(slot):
                values = (whole_milliseconds(slot), *workflow_values(slot.workflow))
                (inserted, _) = _execute(connection, statements.claim, values).fetchone()
            if inserted != 1:
                raise request_taken(slot)
            with Session(connection, **SESSION_OPTIONS) as session:
                answering = (statements, slot)
                yield PostgresBlockingRequestTransaction(
                    self._sessions, connection, transaction, session, answering
                )
                session.commit()
            self._sessions.commit(connection)

    def _check_slot(self, connection: sa.Connection, slot: StepSlot) -> None:
        """Check the place, before the transaction begins.

        Not in it: what a SERIALIZABLE transaction reads of our tables would bring it into
        conflict with those of other workflows.
        """
        values = (slot.executor_id, slot.workflow_id, slot.step_number)
        with outside_transactions(connection):
            (is_free,) = _execute(connection, self._statements.check, values).fetchone()
        if not is_free:
            raise slot_taken(slot)


def _execute(connection: sa.Connection, statement: str, values: Sequence[object]) -> Any:
    """Execute a statement of ours, with parameters by number as the server itself has them."""
    dbapi: Any = connection.dialect.dbapi
    cursor = dbapi.RawCursor(connection.connection.driver_connection)
    return cursor.execute(statement, values)
