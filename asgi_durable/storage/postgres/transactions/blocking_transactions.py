"""Transactions of the application on PostgreSQL, in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from asgi_durable.storage.application import SESSION_OPTIONS
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.rows import PostgresNames
from asgi_durable.storage.postgres.transactions.blocking_sessions import (
    PostgresBlockingSessions,
    is_idle,
)
from asgi_durable.storage.postgres.transactions.open_transactions import (
    Openings,
    OpenRequestTransaction,
    OpenStepTransaction,
)
from asgi_durable.storage.transaction_port import RequestSlot, StepSlot

__all__ = ["PostgresBlockingTransactions"]


class PostgresBlockingTransactions:
    """Opens the application's transactions in threads.

    Args:
        database: The database.
        names: The names of the tables.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._sessions = PostgresBlockingSessions(database)
        self._openings = Openings(PsycopgDriver(), names, database=database.name)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._sessions.close()

    @contextmanager
    def transaction(
        self, slot: StepSlot | None, isolation_level: str | None
    ) -> Iterator[OpenStepTransaction]:
        """See ``Transactions.blocking_transaction``."""
        with self._sessions.connect(isolation_level) as connection:
            self._openings.begin(connection, slot)
            with Session(connection, **SESSION_OPTIONS) as session:
                yield self._openings.step_transaction(connection, session, slot)
                session.commit()
            self._sessions.commit(connection)

    @contextmanager
    def request_transaction(
        self, slot: RequestSlot, isolation_level: str | None
    ) -> Iterator[OpenRequestTransaction]:
        """See ``Transactions.blocking_request_transaction``."""
        with self._sessions.connect(isolation_level) as connection:
            self._openings.begin_request(connection, slot)
            with Session(connection, **SESSION_OPTIONS) as session:
                yield self._openings.request_transaction(connection, session, slot)
                session.commit()
            self._sessions.commit(connection)


class PsycopgDriver:
    """See :class:`asgi_durable.storage.postgres.transactions.open_transactions.Driver`."""

    def execute(self, connection: sa.Connection, statement: str, values: Sequence[object]) -> int:
        rows: int = _execute(connection, statement, values).rowcount
        return rows

    def fetch_row(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Sequence[Any]:
        row: Sequence[Any] = _execute(connection, statement, values).fetchone()
        return row

    def fetch_value(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Any:
        driver: Any = connection.connection.driver_connection
        driver.autocommit = True
        try:
            (value,) = _execute(connection, statement, values).fetchone()
        finally:
            # Invariant: no connection goes back to the pool in this mode, in which whatever a
            # transaction does would be committed at once.
            if is_idle(connection):
                driver.autocommit = False
            else:
                connection.invalidate()
        return value

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        return not is_idle(connection)


def _execute(connection: sa.Connection, statement: str, values: Sequence[object]) -> Any:
    """Execute a statement whose parameters are numbered as the server itself has them."""
    dbapi: Any = connection.dialect.dbapi
    cursor = dbapi.RawCursor(connection.connection.driver_connection)
    return cursor.execute(statement, values)
