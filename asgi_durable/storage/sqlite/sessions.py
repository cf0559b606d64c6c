"""The application's connections to a SQLite file, through SQLAlchemy."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asgi_durable.errors import StorageError
from asgi_durable.per_loop import PerLoop
from asgi_durable.storage.engines import LoopEngines
from asgi_durable.storage.isolation import checked_isolation_level
from asgi_durable.storage.sqlite.errors import storage_error
from asgi_durable.storage.sqlite.file import SQLiteFile

__all__ = ["SQLiteSessions"]


class SQLiteSessions:
    """Opens connections with a write transaction, one at a time.

    Args:
        file: The database.
    """

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file
        self._turns = PerLoop(asyncio.Lock)
        self._engines: LoopEngines | None = None

    async def open(self) -> None:
        """Connect."""
        with self.translating_errors():
            self._engines = await LoopEngines.prepare(self._create_engine)

    async def close(self) -> None:
        """Close all connections."""
        engines, self._engines = self._engines, None
        if engines is not None:
            await engines.dispose(bound_to_loop=False)

    def turn(self) -> asyncio.Lock:
        """Return the lock under which this process writes, in order of arrival.

        SQLite has one writer at a time; waiting for it in its busy handler means sleeping and
        has no order. Event loops beyond the first, and other processes, still wait there.
        """
        return self._turns.get(asyncio.get_running_loop())

    @asynccontextmanager
    async def begin(self, isolation_level: str | None) -> AsyncIterator[AsyncConnection]:
        """Give a connection whose transaction the caller commits; else it is rolled back.

        Raises:
            DurableUsageError: There is no such isolation level.
            StorageError: The database failed, here or in what was done with the connection.
        """
        # SQLite is serializable whatever is asked for.
        checked_isolation_level(isolation_level)
        engines = self._engines
        if engines is None:
            msg = "the storage is not open"
            raise StorageError(msg)
        async with self.turn():
            with self.translating_errors():
                async with engines.here().connect() as connection:
                    await connection.exec_driver_sql("BEGIN IMMEDIATE")
                    yield connection

    async def is_in_transaction(self, connection: AsyncConnection) -> bool:
        """Tell whether the transaction has not been ended behind the connection's back."""
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        return driver is not None and bool(driver.in_transaction)

    @contextmanager
    def translating_errors(self) -> Iterator[None]:
        """Tell failures of the database from mistakes of the application, which pass."""
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            driver_error = error.orig if isinstance(error, DBAPIError) else error
            failure = storage_error(driver_error or error, str(self._file.path))
            if failure is None:
                raise
            raise failure from error

    def _create_engine(self, **options: Any) -> AsyncEngine:
        file = self._file
        engine = create_async_engine(
            sa.URL.create("sqlite+aiosqlite", database=str(file.path)),
            connect_args={"timeout": file.busy_timeout_seconds, "isolation_level": None},
            **options,
        )

        @sa.event.listens_for(engine.sync_engine, "connect")
        def configure(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            file.configure(cursor)
            cursor.close()

        return engine
