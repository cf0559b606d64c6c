"""The application's connections to a SQLite file, through SQLAlchemy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asgi_durable.errors import StorageError
from asgi_durable.storage.application import checked_isolation_level
from asgi_durable.storage.engines import LoopEngines, driver_of
from asgi_durable.storage.sqlite.errors import TranslatingErrors, application_error
from asgi_durable.storage.sqlite.file import SQLiteFile
from asgi_durable.storage.sqlite.transactions.task_connection import (
    TaskConnection,
    interrupt,
    task_connection_of,
    until_it_is_over,
)
from asgi_durable.storage.sqlite.transactions.write_turn import WriteTurn

__all__ = ["SQLiteSessions"]


class SQLiteSessions:
    """Opens connections with a write transaction, one at a time.

    Args:
        file: The database.
        turn: When this process writes.
    """

    def __init__(self, file: SQLiteFile, turn: WriteTurn) -> None:
        self._file = file
        self._turn = turn
        self._engines: LoopEngines | None = None

    async def open(self) -> None:
        """Connect.

        Raises:
            StorageError: It cannot be done.
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
        naming = TranslatingErrors(str(self._file.path), application_error)
        async with self._turn:
            with naming:
                async with self._connect(engines.here()) as connection:
                    with self.our_own_statements():
                        await _begin(connection)
                    yield connection

    @asynccontextmanager
    async def _connect(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Give a connection, and wait until it has no transaction any more, at the end."""
        own: TaskConnection | None = None
        try:
            async with engine.connect() as connection:
                own = task_connection_of(driver_of(connection))
                yield connection
        finally:
            # Where this is cancelled again and again it is closed by its thread alone.
            await until_it_is_over(own, self._file.busy_timeout_seconds)

    def our_own_statements(self) -> AbstractContextManager[None]:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        return TranslatingErrors(str(self._file.path))

    async def commit(self, connection: AsyncConnection) -> None:
        """See :class:`asgi_durable.storage.application.Sessions`."""
        await connection.commit()

    async def is_in_transaction(self, connection: AsyncConnection) -> bool:
        """Tell whether the transaction has not been ended behind the connection's back."""
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


async def _begin(connection: AsyncConnection) -> None:
    """Begin a write transaction."""
    own = task_connection_of(driver_of(connection))
    if own is not None:
        own.begins()
    await connection.exec_driver_sql("BEGIN IMMEDIATE")
    if own is not None:
        own.has_begun()
