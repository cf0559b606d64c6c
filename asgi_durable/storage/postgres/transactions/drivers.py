"""Differences between the two drivers: asyncpg for ``async`` code, psycopg for ``def`` code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import asyncpg
import sqlalchemy as sa

from asgi_durable.storage.postgres.connections.watch import closing_error_of

__all__ = ["Asyncpg", "Driver", "Psycopg"]


class Driver(Protocol):
    """Runs our own statements, whose parameters are ``$1``, ``$2`` and so on.

    All methods are synchronous. Those of asyncpg are called inside of SQLAlchemy's ``run_sync``.
    """

    def execute(self, connection: sa.Connection, statement: str, values: Sequence[object]) -> Any:
        """Run a statement in the transaction; return a cursor with ``rowcount``, ``fetchone``."""

    def fetch_alone(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Any:
        """Run a statement before the transaction begins, and return the one value it selects."""

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        """Tell whether the server has an open transaction for a connection."""

    def is_closed(self, driver_connection: Any, /) -> bool:
        """Tell whether the driver's own connection is closed or lost."""

    def closing_error(self, driver_connection: Any, /) -> asyncpg.PostgresError | None:
        """Return the error with which the server closed a connection, if it is not raised."""


class Asyncpg:
    """See :class:`Driver`.

    Args:
        prepares: False if a prepared statement may not outlive its transaction.
    """

    def __init__(self, *, prepares: bool) -> None:
        self._prepares = prepares

    def execute(self, connection: sa.Connection, statement: str, values: Sequence[object]) -> Any:
        return connection.exec_driver_sql(statement, tuple(values))

    def fetch_alone(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Any:
        async def fetch(driver: Any) -> Any:
            if self._prepares:
                return await driver.fetchval(statement, *values)
            async with driver.transaction():
                return await driver.fetchval(statement, *values)

        adapted: Any = connection.connection.dbapi_connection
        try:
            return adapted.run_async(fetch)
        except BaseException as error:
            # Invariant: a connection with an open transaction does not return to its pool. A
            # cancellation may interrupt the ROLLBACK too, and SQLAlchemy does not know of this
            # transaction. It invalidates connections in the same way for its own statements.
            driver = adapted.driver_connection
            is_sound = isinstance(error, Exception) and not driver.is_closed()
            if not is_sound or driver.is_in_transaction():
                connection.invalidate()
            raise

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        driver: Any = connection.connection.driver_connection
        return bool(driver.is_in_transaction())

    def is_closed(self, driver_connection: Any) -> bool:
        return bool(driver_connection.is_closed())

    def closing_error(self, driver_connection: Any) -> asyncpg.PostgresError | None:
        return closing_error_of(driver_connection)


class Psycopg:
    """See :class:`Driver`."""

    def execute(self, connection: sa.Connection, statement: str, values: Sequence[object]) -> Any:
        # Cursors of SQLAlchemy take `%s` and not `$1` as a parameter.
        dbapi: Any = connection.dialect.dbapi
        cursor = dbapi.RawCursor(connection.connection.driver_connection)
        return cursor.execute(statement, values)

    def fetch_alone(
        self, connection: sa.Connection, statement: str, values: Sequence[object]
    ) -> Any:
        with _autocommit(connection):
            (value,) = self.execute(connection, statement, values).fetchone()
            return value

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        driver: Any = connection.connection.driver_connection
        return driver is not None and not _is_idle(driver)

    def is_closed(self, driver_connection: Any) -> bool:
        return driver_connection is None or bool(driver_connection.closed)

    def closing_error(self, _driver_connection: Any) -> asyncpg.PostgresError | None:
        # psycopg raises the server's error itself.
        return None


@contextmanager
def _autocommit(connection: sa.Connection) -> Iterator[None]:
    """Run statements of psycopg without a transaction around them.

    Invariant: the connection begins transactions again after this, or it does not return to its
    pool. Otherwise its next transaction would commit each statement by itself.
    """
    driver: Any = connection.connection.driver_connection
    driver.autocommit = True
    try:
        yield
    finally:
        # psycopg changes the mode of an idle connection only. A connection is not idle after a
        # loss, or where a statement was interrupted.
        if _is_idle(driver):
            driver.autocommit = False
        else:
            connection.invalidate()


def _is_idle(driver: Any) -> bool:
    return bool(driver.info.transaction_status.name == "IDLE")
