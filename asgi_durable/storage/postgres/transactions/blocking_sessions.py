"""The connections of threads to PostgreSQL, through SQLAlchemy and psycopg."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.application import checked_isolation_level
from asgi_durable.storage.postgres.connections.conninfo import connection_parameters
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.transactions.application_errors import (
    application_error,
    drop_outdated_connections,
    our_own_commit,
    our_own_statements,
    unavailable_error,
)

__all__ = ["PostgresBlockingSessions", "is_idle", "outside_transactions"]


class PostgresBlockingSessions:
    """Opens connections for transactions of code that is not async.

    Args:
        database: Where to.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._engine: sa.Engine | None = None

    def close(self) -> None:
        """Close all connections that are not in use."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """Give a connection whose transaction has not begun.

        Raises:
            DurableUsageError: psycopg is not installed.
            StorageError: The database failed, here or in what was done with the connection.
        """
        name = self._database.name
        try:
            connection = self._given_engine().connect()
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise unavailable_error(error, name) from error
        try:
            yield connection
        except Exception as error:
            failure = application_error(error, name, is_lost=_is_lost(connection))
            if failure is None:
                raise
            raise failure from error
        finally:
            _close(connection)

    @contextmanager
    def begin(self, isolation_level: str | None) -> Iterator[sa.Connection]:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        level = checked_isolation_level(isolation_level)
        with self.connect() as connection:
            if level is not None:
                connection.execution_options(isolation_level=level)
            # The driver's BEGIN comes with the first statement: at once, so that it can be
            # told whether the transaction goes on.
            with self.our_own_statements():
                connection.exec_driver_sql("SELECT")
            yield connection

    def our_own_statements(self) -> AbstractContextManager[None]:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        return our_own_statements(self._database.name)

    def commit(self, connection: sa.Connection) -> None:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        with our_own_commit(self._database.name):
            connection.commit()

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        """Tell whether the transaction has not been ended behind the connection's back."""
        return connection.in_transaction() and not is_idle(connection)

    def _given_engine(self) -> sa.Engine:
        # Made when it is needed: who has no such code needs no psycopg.
        with self._lock:
            if self._engine is None:
                self._engine = self._create_engine()
            return self._engine

    def _create_engine(self) -> sa.Engine:
        try:
            engine = sa.create_engine(
                "postgresql+psycopg://",
                creator=lambda: self._connect(dbapi),
                **self._database.pool_options,
            )
        except ModuleNotFoundError as error:
            msg = (
                f"{self._database.name}: transactions of code that is not async need psycopg: "
                "install asgi-durable[postgres]"
            )
            raise DurableUsageError(msg) from error
        dbapi: Any = engine.dialect.dbapi
        sa.event.listen(engine, "handle_error", drop_outdated_connections)

        @sa.event.listens_for(engine, "checkout")
        def check(connection: Any, _record: object, _proxy: object) -> None:
            if connection.closed:
                raise sa.exc.DisconnectionError

        return engine

    def _connect(self, dbapi: Any) -> Any:
        *others, last = self._database.dsns
        for dsn in others:
            with contextlib.suppress(dbapi.Error):
                return self._connect_to(dbapi, dsn)
        return self._connect_to(dbapi, last)

    def _connect_to(self, dbapi: Any, dsn: str) -> Any:
        database = self._database
        seconds = database.connect_timeout_seconds / len(database.dsns)
        threshold = 5 if database.prepared_statements else None
        parameters = connection_parameters(dsn, timeout_seconds=seconds)
        return dbapi.connect(prepare_threshold=threshold, **parameters)


def is_idle(connection: sa.Connection) -> bool:
    """Tell whether the server runs no transaction for a connection."""
    driver = connection.connection.driver_connection
    return driver is None or _is_idle(driver)


def _is_idle(driver: Any) -> bool:
    return bool(driver.info.transaction_status.name == "IDLE")


@contextmanager
def outside_transactions(connection: sa.Connection) -> Iterator[None]:
    """Run statements of a connection without a transaction around them.

    Invariant: the connection begins transactions again after this, or it does not return to its
    pool. Otherwise its next transaction would commit each statement by itself.
    """
    driver: Any = connection.connection.driver_connection
    driver.autocommit = True
    try:
        yield
    finally:
        # The driver changes its mode only while the connection is idle. It is not idle after a
        # loss, or where a statement was interrupted.
        if _is_idle(driver):
            driver.autocommit = False
        else:
            connection.invalidate()


def _close(connection: sa.Connection) -> None:
    """Close a connection; one that is lost is rolled back by that, and fails nobody."""
    try:
        connection.close()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise


def _is_lost(connection: sa.Connection) -> bool:
    if connection.closed or connection.invalidated:
        return True
    driver: Any = connection.connection.driver_connection
    return driver is None or driver.closed
