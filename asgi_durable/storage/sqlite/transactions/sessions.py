"""The application's connections to a SQLite file, through SQLAlchemy, for tasks and threads."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asgi_durable.errors import StorageError
from asgi_durable.storage.application import checked_isolation_level
from asgi_durable.storage.engines import LoopEngines, driver_of
from asgi_durable.storage.sqlite.errors import TranslatingErrors, application_error
from asgi_durable.storage.sqlite.file import SQLiteFile
from asgi_durable.storage.sqlite.locks import WriteTurn
from asgi_durable.storage.sqlite.transactions.task_connection import (
    TaskConnection,
    interrupt,
    task_connection_of,
    wait_until_unlocked,
)

__all__ = ["SQLiteBlockingSessions", "SQLiteSessions"]


class SQLiteSessions:
    """Opens connections for tasks, each with a write transaction, one at a time.

    Args:
        file: The database.
        turn: The lock under which this process writes.
    """

    def __init__(self, file: SQLiteFile, turn: WriteTurn) -> None:
        self._file = file
        self._turn = turn
        self._engines: LoopEngines | None = None

    async def open(self) -> None:
        """Connect.

        Raises:
            StorageError: The file cannot be used.
        """
        self._file.check()
        with TranslatingErrors(str(self._file.path)):
            self._engines = await LoopEngines.prepare(self._create_engine)

    async def close(self) -> None:
        """Close all connections."""
        engines, self._engines = self._engines, None
        if engines is not None:
            await engines.dispose(bound_to_loop=False)

    @asynccontextmanager
    async def begin(self, isolation_level: str | None) -> AsyncIterator[AsyncConnection]:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        # The level is only checked: SQLite's transactions are always serializable.
        checked_isolation_level(isolation_level)
        engines = self._engines
        if engines is None:
            msg = "the storage is not open"
            raise StorageError(msg)
        naming = TranslatingErrors(str(self._file.path), application_error)
        async with self._turn:
            with naming:
                async with self._connect(engines.here()) as connection:
                    with self.library_statements():
                        await _begin(connection)
                    yield connection

    @asynccontextmanager
    async def _connect(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Open a connection; at the end, wait until it has no transaction any more."""
        own: TaskConnection | None = None
        try:
            async with engine.connect() as connection:
                own = task_connection_of(driver_of(connection))
                yield connection
        finally:
            # If this is cancelled repeatedly, the connection's thread closes it by itself.
            await wait_until_unlocked(own, self._file.busy_timeout_seconds)

    def library_statements(self) -> AbstractContextManager[None]:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        return TranslatingErrors(str(self._file.path))

    async def commit(self, connection: AsyncConnection) -> None:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        await connection.commit()

    async def is_in_transaction(self, connection: AsyncConnection) -> bool:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        return driver is not None and bool(driver.in_transaction)

    def _create_engine(self, **options: Any) -> AsyncEngine:
        file = self._file
        engine = create_async_engine(
            sa.URL.create("sqlite+aiosqlite", database=str(file.path)),
            connect_args={
                "timeout": file.busy_timeout_seconds,
                "isolation_level": None,
                "factory": TaskConnection,
            },
            **options,
        )
        sa.event.listen(engine.sync_engine, "close", interrupt)

        @sa.event.listens_for(engine.sync_engine, "connect")
        def configure(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            file.configure(cursor)
            cursor.close()

        return engine


class SQLiteBlockingSessions:
    """Opens connections for threads, each with a write transaction, one at a time.

    Args:
        file: The database.
        turn: The lock under which this process writes.
    """

    def __init__(self, file: SQLiteFile, turn: WriteTurn) -> None:
        self._file = file
        self._turn = turn
        # The engine opens no connection before it is used.
        self._engine = sa.create_engine("sqlite://", creator=file.connect, poolclass=sa.QueuePool)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._engine.dispose()

    @contextmanager
    def begin(self, isolation_level: str | None) -> Iterator[sa.Connection]:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        # The level is only checked: SQLite's transactions are always serializable.
        checked_isolation_level(isolation_level)
        naming = TranslatingErrors(str(self._file.path), application_error)
        with self._turn, naming, self._engine.connect() as connection:
            with self.library_statements():
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def library_statements(self) -> AbstractContextManager[None]:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        return TranslatingErrors(str(self._file.path))

    def commit(self, connection: sa.Connection) -> None:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        connection.commit()

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        driver = cast("sqlite3.Connection | None", connection.connection.driver_connection)
        return driver is not None and driver.in_transaction


async def _begin(connection: AsyncConnection) -> None:
    """Begin a write transaction, and mark the connection while it is uncertain whether it has."""
    own = task_connection_of(driver_of(connection))
    if own is not None:
        own.begins()
    await connection.exec_driver_sql("BEGIN IMMEDIATE")
    if own is not None:
        own.has_begun()
