"""The application's connections to a SQLite file, through SQLAlchemy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asgi_durable.errors import StorageError
from asgi_durable.storage.engines import LoopEngines
from asgi_durable.storage.isolation import checked_isolation_level
from asgi_durable.storage.sqlite.errors import TranslatingErrors
from asgi_durable.storage.sqlite.file import SQLiteFile
from asgi_durable.storage.sqlite.write_turn import WriteTurn

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
        async with self._turn:
            with TranslatingErrors(str(self._file.path)):
                async with engines.here().connect() as connection:
                    await connection.exec_driver_sql("BEGIN IMMEDIATE")
                    yield connection

    async def is_in_transaction(self, connection: AsyncConnection) -> bool:
        """Tell whether the transaction has not been ended behind the connection's back."""
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        return driver is not None and bool(driver.in_transaction)

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
