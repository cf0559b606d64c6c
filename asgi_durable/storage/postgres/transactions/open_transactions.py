"""The order of statements in a transaction of the application, for ``async`` and ``def`` alike.

Everything here is synchronous. ``def`` code calls it in its thread. For ``async`` code it runs
inside of SQLAlchemy's ``run_sync``, where a statement suspends the task that waits for it.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.application import transaction_ended_error
from asgi_durable.storage.postgres.rows import PostgresNames, step_values, workflow_values
from asgi_durable.storage.postgres.transactions.application_errors import library_statements
from asgi_durable.storage.postgres.transactions.drivers import Driver
from asgi_durable.storage.postgres.transactions.statements import (
    RequestStatements,
    StepStatements,
    lock_timeout_of,
    request_taken,
    response_parameters,
    step_taken,
    waiting_for_claim,
)
from asgi_durable.storage.records import StepRecord
from asgi_durable.storage.transaction_port import RequestSlot, StepSlot
from asgi_durable.storage.writes import FinishWorkflow

__all__ = ["OpenRequestTransaction", "OpenStepTransaction", "TransactionCore"]


class TransactionCore:
    """Begins transactions on connections of one driver.

    Args:
        driver: The driver of the connections.
        names: The tables' names.
        database: The database's name, for messages.
    """

    def __init__(self, driver: Driver, names: PostgresNames, database: str) -> None:
        self.driver = driver
        self.database = database
        self.step_statements = StepStatements(names)
        self.request_statements = RequestStatements(names)

    def begin_step(self, connection: sa.Connection, slot: StepSlot | None) -> sa.RootTransaction:
        """Check the place in the step log, if there is one, and begin a transaction.

        The check is not part of the transaction: a SERIALIZABLE one that reads our tables would
        conflict with transactions of other workflows.

        Raises:
            SlotTakenError: The place is taken, or the workflow is not the executor's.
        """
        if slot is not None:
            values = (slot.executor_id, slot.workflow_id, slot.step_number)
            with library_statements(self.database):
                is_free = self.driver.fetch_alone(connection, self.step_statements.check, values)
            if not is_free:
                raise step_taken(slot)
        return connection.begin()

    def begin_request(self, connection: sa.Connection, slot: RequestSlot) -> sa.RootTransaction:
        """Begin a transaction, and claim the request in it.

        Raises:
            SlotTakenError: There is a workflow with the request's id.
            SlotBusyError: Another transaction held the id for too long.
        """
        transaction = connection.begin()
        values = (lock_timeout_of(slot), *workflow_values(slot.workflow))
        with library_statements(self.database), waiting_for_claim(slot):
            cursor = self.driver.execute(connection, self.request_statements.claim, values)
            (inserted, _) = cursor.fetchone()
        if inserted != 1:
            raise request_taken(slot)
        return transaction


class _OpenTransaction:
    """A transaction that has begun, and the application's session in it."""

    def __init__(
        self,
        core: TransactionCore,
        connection: sa.Connection,
        transaction: sa.RootTransaction,
        session: Session,
        *,
        has_begun: bool,
    ) -> None:
        self.session = session
        self._core = core
        self._connection = connection
        self._transaction = transaction
        self._has_begun = has_begun
        # The drivers send BEGIN with the first statement, which is the session's savepoint.
        sa.event.listen(session, "after_begin", self._on_begin)

    def flush(self) -> None:
        """Write the rows that the session holds, so that ours can be written after them.

        Raises:
            DurableUsageError: The application has ended the transaction itself.
        """
        if not self._transaction.is_active or (
            self._has_begun and not self._core.driver.is_in_transaction(self._connection)
        ):
            # The session's savepoint does not exist any more, and to release it would fail.
            self._connection.invalidate()
            raise transaction_ended_error()
        self.session.commit()

    def _on_begin(self, *_: object) -> None:
        self._has_begun = True


class OpenStepTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingTransaction`."""

    def __init__(
        self,
        core: TransactionCore,
        connection: sa.Connection,
        transaction: sa.RootTransaction,
        session: Session,
        slot: StepSlot | None,
    ) -> None:
        super().__init__(core, connection, transaction, session, has_begun=False)
        self._slot = slot

    def record(self, step: StepRecord) -> None:
        if self._slot is None:
            msg = "this transaction has no place in a step log"
            raise DurableUsageError(msg)
        # Invariant: the application's rows are flushed before the record is written, and one
        # COMMIT follows for both.
        self.flush()
        core, values = self._core, (self._slot.executor_id, *step_values(step))
        with library_statements(core.database):
            recorded = core.driver.execute(self._connection, core.step_statements.record, values)
        if recorded.rowcount != 1:
            raise step_taken(self._slot)


class OpenRequestTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingRequestTransaction`."""

    def __init__(
        self,
        core: TransactionCore,
        connection: sa.Connection,
        transaction: sa.RootTransaction,
        session: Session,
        slot: RequestSlot,
    ) -> None:
        # The claim was the first statement.
        super().__init__(core, connection, transaction, session, has_begun=True)
        self._slot = slot

    def store_response(self, end: FinishWorkflow) -> None:
        # The caller has flushed before, but attributes that were loaded since may have begun
        # another savepoint.
        self.flush()
        core, values = self._core, response_parameters(end)
        execute, statements = core.driver.execute, core.request_statements
        with library_statements(core.database):
            for start in end.starts:
                execute(self._connection, statements.start, workflow_values(start))
            answered = execute(self._connection, statements.answer, values)
        if answered.rowcount != 1:
            raise request_taken(self._slot)
