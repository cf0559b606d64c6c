"""The application's connections to PostgreSQL, pooled by SQLAlchemy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asgi_durable.errors import DurableUsageError, StorageError
from asgi_durable.storage.application import checked_isolation_level
from asgi_durable.storage.engines import LoopEngines
from asgi_durable.storage.postgres.connections.conninfo import connection_parameters
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.watch import WatchedDatabase
from asgi_durable.storage.postgres.transactions.application_errors import (
    application_error,
    drop_outdated_connections,
    library_statements,
    our_own_commit,
    unavailable_error,
)
from asgi_durable.storage.postgres.transactions.drivers import Asyncpg, Driver, Psycopg

__all__ = ["PostgresBlockingSessions", "PostgresSessions", "synchronous"]


class PostgresSessions:
    """Opens connections for transactions of ``async`` code, on the application's event loop.

    Args:
        database: The database.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._watched = WatchedDatabase(database)
        self._engines: LoopEngines | None = None
        self.driver = Asyncpg(prepares=database.prepared_statements)

    async def open(self) -> None:
        """Connect.

        Raises:
            StorageError: The database cannot be used.
        """
        try:
            self._engines = await LoopEngines.prepare(self._create_engine)
        except Exception as error:
            raise self._connect_error(error) from error

    async def close(self) -> None:
        """Close all connections."""
        engines, self._engines = self._engines, None
        if engines is not None:
            await engines.dispose(bound_to_loop=True)

    @asynccontextmanager
    async def connect(self, isolation_level: str | None) -> AsyncIterator[AsyncConnection]:
        """Open a connection whose transaction has not begun.

        Raises:
            DurableUsageError: There is no such isolation level.
            StorageError: The database failed, here or while the connection was used.
        """
        level = checked_isolation_level(isolation_level)
        engines = self._engines
        if engines is None:
            msg = "the storage is not open"
            raise StorageError(msg)
        try:
            connection = await engines.here().connect().start()
        except Exception as error:
            raise self._connect_error(error) from error
        try:
            with _application_errors(synchronous(connection), self.driver, self._database.name):
                if level is not None:
                    await connection.execution_options(isolation_level=level)
                yield connection
        finally:
            with _ignoring_a_loss():
                await connection.close()

    @asynccontextmanager
    async def begin(self, isolation_level: str | None) -> AsyncIterator[AsyncConnection]:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        async with self.connect(isolation_level) as connection:
            # The driver sends BEGIN with the first statement. It is sent now, so that a
            # transaction that the application ends by itself can be recognised.
            with self.library_statements():
                await connection.exec_driver_sql("SELECT")
            yield connection

    def library_statements(self) -> AbstractContextManager[None]:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        return library_statements(self._database.name)

    async def commit(self, connection: AsyncConnection) -> None:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        with our_own_commit(self._database.name):
            await connection.commit()

    async def is_in_transaction(self, connection: AsyncConnection) -> bool:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        return await connection.run_sync(
            lambda sync: sync.in_transaction() and self.driver.is_in_transaction(sync)
        )

    def _connect_error(self, error: Exception) -> StorageError:
        if isinstance(error, StorageError):
            return error
        return unavailable_error(error, self._database.name)

    def _create_engine(self, **options: Any) -> AsyncEngine:
        database = self._database
        driver_options: dict[str, Any] = {}
        if not database.prepared_statements:
            # Use the unnamed statement: the next one replaces it, so none is left behind on a
            # server connection that a pooler lends to others.
            driver_options = {
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": str,
            }

        def connect() -> Any:
            dbapi: Any = engine.dialect.dbapi
            return dbapi.connect(async_creator_fn=self._watched.connect, **driver_options)

        if "poolclass" not in options:
            options |= database.pool_options
        engine = create_async_engine("postgresql+asyncpg://", creator=connect, **options)
        _replace_unusable_connections(engine.sync_engine, self.driver)
        return engine


class PostgresBlockingSessions:
    """Opens connections for transactions of ``def`` code, in the calling thread.

    Args:
        database: The database.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._engine: sa.Engine | None = None
        self.driver = Psycopg()

    def close(self) -> None:
        """Close all connections that are not in use."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    @contextmanager
    def connect(self, isolation_level: str | None) -> Iterator[sa.Connection]:
        """Open a connection whose transaction has not begun.

        Raises:
            DurableUsageError: psycopg is not installed, or there is no such isolation level.
            StorageError: The database failed, here or while the connection was used.
        """
        level = checked_isolation_level(isolation_level)
        try:
            connection = self._get_engine().connect()
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise unavailable_error(error, self._database.name) from error
        try:
            with _application_errors(connection, self.driver, self._database.name):
                if level is not None:
                    connection.execution_options(isolation_level=level)
                yield connection
        finally:
            with _ignoring_a_loss():
                connection.close()

    @contextmanager
    def begin(self, isolation_level: str | None) -> Iterator[sa.Connection]:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        with self.connect(isolation_level) as connection:
            # For the same reason as in `PostgresSessions.begin`.
            with self.library_statements():
                connection.exec_driver_sql("SELECT")
            yield connection

    def library_statements(self) -> AbstractContextManager[None]:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        return library_statements(self._database.name)

    def commit(self, connection: sa.Connection) -> None:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        with our_own_commit(self._database.name):
            connection.commit()

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        return connection.in_transaction() and self.driver.is_in_transaction(connection)

    def _get_engine(self) -> sa.Engine:
        # The engine is made at its first use: an application without `def` transactions needs
        # no psycopg.
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
        _replace_unusable_connections(engine, self.driver)
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


def synchronous(connection: AsyncConnection) -> sa.Connection:
    """Return the connection that an open ``AsyncConnection`` wraps, for use in ``run_sync``."""
    return cast("sa.Connection", connection.sync_connection)


@contextmanager
def _application_errors(connection: sa.Connection, driver: Driver, database: str) -> Iterator[None]:
    """Replace errors in a transaction by those of :func:`application_error`."""
    # It is looked up now, as an invalidated connection does not have it any more.
    driver_connection = connection.connection.driver_connection
    try:
        yield
    except Exception as error:
        failure = application_error(
            error,
            database,
            is_lost=connection.invalidated or driver.is_closed(driver_connection),
            closing_error=driver.closing_error(driver_connection),
        )
        if failure is None:
            raise
        raise failure from error


@contextmanager
def _ignoring_a_loss() -> Iterator[None]:
    """Suppress errors of closing a lost connection: the server has rolled it back by then."""
    try:
        yield
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise


def _replace_unusable_connections(engine: sa.Engine, driver: Driver) -> None:
    """Let an engine's pool replace connections that are closed, or outdated by a migration."""
    sa.event.listen(engine, "handle_error", drop_outdated_connections)

    @sa.event.listens_for(engine, "checkout")
    def check(connection: Any, _record: object, _proxy: object) -> None:
        # This costs no round trip, and finds connections that a restarted server has closed.
        if driver.is_closed(getattr(connection, "driver_connection", connection)):
            raise sa.exc.DisconnectionError
