"""The application's connections to PostgreSQL, through SQLAlchemy, on its own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asgi_durable.errors import StorageError
from asgi_durable.storage.application import checked_isolation_level
from asgi_durable.storage.engines import LoopEngines, driver_of
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.watch import WatchedDatabase, farewell_on
from asgi_durable.storage.postgres.transactions.application_errors import (
    application_error,
    drop_outdated_connections,
    library_statements,
    our_own_commit,
    unavailable_error,
)

__all__ = ["PostgresSessions"]


class PostgresSessions:
    """Opens connections for transactions.

    Args:
        database: The database.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._watched = WatchedDatabase(database)
        self._engines: LoopEngines | None = None

    async def open(self) -> None:
        """Connect."""
        try:
            self._engines = await LoopEngines.prepare(self._create_engine)
        except Exception as error:
            raise self._refusal(error) from error

    async def close(self) -> None:
        """Close all connections."""
        engines, self._engines = self._engines, None
        if engines is not None:
            await engines.dispose(bound_to_loop=True)

    @asynccontextmanager
    async def connect(self, isolation_level: str | None) -> AsyncIterator[AsyncConnection]:
        """Yield a connection whose transaction has not begun.

        Raises:
            DurableUsageError: There is no such isolation level.
            StorageError: The database failed, here or in the code that used the connection.
        """
        level = checked_isolation_level(isolation_level)
        engines = self._engines
        if engines is None:
            msg = "the storage is not open"
            raise StorageError(msg)
        try:
            connection = await engines.here().connect().start()
        except Exception as error:
            raise self._refusal(error) from error
        driver = driver_of(connection)
        try:
            if level is not None:
                await connection.execution_options(isolation_level=level)
            yield connection
        except Exception as error:
            failure = application_error(
                error,
                self._database.name,
                is_lost=connection.invalidated or driver.is_closed(),
                farewell=farewell_on(driver),
            )
            if failure is None:
                raise
            raise failure from error
        finally:
            await _close(connection)

    @asynccontextmanager
    async def begin(self, isolation_level: str | None) -> AsyncIterator[AsyncConnection]:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        async with self.connect(isolation_level) as connection:
            # The driver's BEGIN comes with the first statement. It is sent at once, so that the
            # driver knows from here on whether the transaction is open.
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
        """Tell whether the transaction is still open, and was not ended by SQL."""
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        return connection.in_transaction() and bool(driver.is_in_transaction())

    def _refusal(self, error: Exception) -> StorageError:
        if isinstance(error, StorageError):
            return error
        return unavailable_error(error, self._database.name)

    def _create_engine(self, **options: Any) -> AsyncEngine:
        database = self._database
        adapting: dict[str, Any] = {}
        if not database.prepared_statements:
            # The unnamed statement: the next one replaces it, and none is left on a server
            # connection that a pooler gives to others.
            adapting = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}

        def connect() -> Any:
            dbapi: Any = engine.dialect.dbapi
            return dbapi.connect(async_creator_fn=self._watched.connect, **adapting)

        if "poolclass" not in options:
            options |= database.pool_options
        engine = create_async_engine("postgresql+asyncpg://", creator=connect, **options)

        sa.event.listen(engine.sync_engine, "handle_error", drop_outdated_connections)

        @sa.event.listens_for(engine.sync_engine, "checkout")
        def check(connection: Any, _record: object, _proxy: object) -> None:
            # It costs nothing, and finds connections that a restarted server has closed.
            if connection.driver_connection.is_closed():
                raise sa.exc.DisconnectionError

        return engine


async def _close(connection: AsyncConnection) -> None:
    """Close a connection; a lost one is rolled back by that, without an error."""
    try:
        await connection.close()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
