"""The application's transactions on PostgreSQL: what the library does in them, in which order.

Written once, in terms of SQLAlchemy's blocking connections. Code in threads calls it directly, and
async code through ``AsyncConnection.run_sync``; :class:`Driver` has what differs between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.application import transaction_ended_error
from asgi_durable.storage.postgres.rows import PostgresNames, step_values, workflow_values
from asgi_durable.storage.postgres.transactions.application_errors import library_statements
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

__all__ = ["Driver", "OpenRequestTransaction", "OpenStepTransaction", "Openings"]


class Driver(Protocol):
    """Sends the library's own statements, whose parameters are numbered as the server has them."""

    def execute(self, connection: sa.Connection, statement: str, values: Sequence[object]) -> int:
        """Execute a statement in the open transaction; return the number of its rows."""

    def fetch_row(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Sequence[Any]:
        """Return the only row of a statement in the open transaction."""

    def fetch_value(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Any:
        """Return the only value of a statement, executed before the transaction begins.

        The connection is left as it was, however the statement ends.
        """

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        """Tell whether the server has an open transaction for a connection."""


class Openings:
    """Begins transactions, each with a check that its slot is free.

    Args:
        driver: The driver of the connections.
        names: The names of the tables.
        database: The database, for messages.
    """

    def __init__(self, driver: Driver, names: PostgresNames, *, database: str) -> None:
        self._driver = driver
        self._database = database
        self._step_statements = SlotStatements(names)
        self._request_statements = RequestStatements(names)

    def begin(self, connection: sa.Connection, slot: StepSlot | None) -> None:
        """Begin a transaction.

        Raises:
            SlotTakenError: The step is recorded, or the executor does not own the workflow.
        """
        if slot is not None:
            # Not in the transaction: a SERIALIZABLE one that reads the library's tables would
            # conflict with the transactions of other workflows.
            values = (slot.executor_id, slot.workflow_id, slot.step_number)
            statement = self._step_statements.check
            with library_statements(self._database):
                is_free = self._driver.fetch_value(connection, statement, values)
            if not is_free:
                raise slot_taken(slot)
        connection.begin()

    def begin_request(self, connection: sa.Connection, slot: RequestSlot) -> None:
        """Begin a transaction, and claim the request in it.

        Raises:
            SlotBusyError: Another transaction has claimed the request, and did not end in time.
            SlotTakenError: The request is claimed, or the executor is not alive.
        """
        connection.begin()
        values = (whole_milliseconds(slot), *workflow_values(slot.workflow))
        with library_statements(self._database), claiming(slot):
            row = self._driver.fetch_row(connection, self._request_statements.claim, values)
        if row[0] != 1:
            raise request_taken(slot)

    def step_transaction(
        self, connection: sa.Connection, session: Session, slot: StepSlot | None
    ) -> OpenStepTransaction:
        """Return the open transaction of a step, or of no step."""
        statement = self._step_statements.record
        return OpenStepTransaction(
            self._driver, self._database, connection, session, (statement, slot)
        )

    def request_transaction(
        self, connection: sa.Connection, session: Session, slot: RequestSlot
    ) -> OpenRequestTransaction:
        """Return the open transaction of a request."""
        return OpenRequestTransaction(
            self._driver, self._database, connection, session, (self._request_statements, slot)
        )


class _OpenTransaction:
    """An open transaction, and the application's session in it."""

    def __init__(
        self, driver: Driver, database: str, connection: sa.Connection, session: Session
    ) -> None:
        self.session = session
        self._driver = driver
        self._database = database
        self._connection = connection
        self._has_begun = False
        # The driver's BEGIN comes with the first statement, which is the savepoint of the session.
        sa.event.listen(session, "after_begin", self._on_begin)

    def flush(self) -> None:
        """Write the rows that the session holds, so that the library's come after them.

        Raises:
            DurableUsageError: The application has ended the transaction itself.
        """
        transaction = self._connection.get_transaction()
        is_over = self._has_begun and not self._driver.is_in_transaction(self._connection)
        if transaction is None or not transaction.is_active or is_over:
            # There is no savepoint left, and the session would fail at its own.
            self._connection.invalidate()
            raise transaction_ended_error()
        self.session.commit()

    def _on_begin(self, *_: object) -> None:
        self._has_begun = True


class OpenStepTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingTransaction`."""

    def __init__(
        self,
        driver: Driver,
        database: str,
        connection: sa.Connection,
        session: Session,
        recording: tuple[str, StepSlot | None],
    ) -> None:
        super().__init__(driver, database, connection, session)
        self._statement, self._slot = recording

    def record(self, step: StepRecord) -> None:
        slot = self._slot
        if slot is None:
            msg = "this transaction has no place in a step log"
            raise DurableUsageError(msg)
        # Invariant: the application's rows are flushed before the record, and one COMMIT makes
        # both durable.
        self.flush()
        values = (slot.executor_id, *step_values(step))
        with library_statements(self._database):
            rows = self._driver.execute(self._connection, self._statement, values)
        if rows != 1:
            raise slot_taken(slot)


class OpenRequestTransaction(_OpenTransaction):
    """See :class:`asgi_durable.storage.transaction_port.BlockingRequestTransaction`."""

    def __init__(
        self,
        driver: Driver,
        database: str,
        connection: sa.Connection,
        session: Session,
        answering: tuple[RequestStatements, RequestSlot],
    ) -> None:
        super().__init__(driver, database, connection, session)
        self._statements, self._slot = answering
        # The claim was its first statement.
        self._has_begun = True

    def store_response(self, end: FinishWorkflow) -> None:
        # Once more: code that read an object since the last time may have begun a savepoint.
        self.flush()
        with library_statements(self._database):
            for start in end.starts:
                row = workflow_values(start)
                self._driver.execute(self._connection, self._statements.start, row)
            answer, values = self._statements.answer, answer_values(end)
            rows = self._driver.execute(self._connection, answer, values)
        if rows != 1:
            raise request_taken(self._slot)
