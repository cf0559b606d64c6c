"""Connections for the library's own statements, which are opened again after a loss."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg

from asgi_durable.errors import StorageError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.errors import is_harmless, storage_error

__all__ = ["Connection", "LoopConnection", "ReconnectingConnection"]

ResultT = TypeVar("ResultT")

# Limits the orderly close of a connection: a lost server does not respond.
CLOSE_SECONDS = 1.0

# Invariant: a process that stops in the middle of a transaction does not hold its locks for ever.
# Others may wait for them, for example to take the workflows of a dead executor.
_BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '15s'"
# The driver asks the server about each array type once. It does so here, before the first batch.
_ARRAY_TYPES = "SELECT $1::text[], $2::bytea[], $3::int4[], $4::int8[], $5::bool[]"


class Connection:
    """One connection of the driver, for our own statements.

    Args:
        driver: The driver's connection.
        prepares: False if a prepared statement may not outlive its transaction.
    """

    def __init__(self, driver: asyncpg.Connection, *, prepares: bool) -> None:
        self.driver = driver
        self._prepares = prepares

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        """Run a statement and return its rows. Outside a transaction it is one by itself."""
        rows: list[Any]
        if self._prepares or self.driver.is_in_transaction():
            rows = await self.driver.fetch(statement, *values)
            return rows
        # Invariant: a statement is parsed and run in one transaction. Outside of one a pooler
        # may run it on another server connection, which does not know it.
        async with self.transaction():
            rows = await self.driver.fetch(statement, *values)
            return rows

    async def fetch_one(self, statement: str, *values: Any) -> Any:
        """Run a statement that returns one row."""
        (row,) = await self.fetch(statement, *values)
        return row

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Open a transaction; commit it at the end, roll it back on any exception."""
        await self.driver.execute(_BEGIN)
        try:
            yield
        except BaseException:
            if not self.driver.is_closed():
                await self.driver.execute("ROLLBACK")
            raise
        await self.driver.execute("COMMIT")


class ReconnectingConnection:
    """A connection that is opened at its first use, and again after a loss.

    It runs one function at a time, all of them on one event loop.

    Args:
        database: The database.
        on_connect: Called with every new connection, before its first use.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        *,
        on_connect: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        self._database = database
        self._on_connect = on_connect
        self._lock = asyncio.Lock()
        self._current: Connection | None = None
        self.timeout_seconds = database.command_timeout_seconds

    async def run(self, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """Run a function with the connection.

        If the connection turns out to be lost, for example because a firewall cut it or the
        server was restarted, it is replaced, and the function is run once more.

        Args:
            work: The function. Running it twice must have the same effect as running it once.

        Raises:
            StorageError: The database failed. The driver's error for a row that the database
                cannot hold is raised as it is.
        """
        async with self._lock:
            connection = self._current
            if connection is not None and not connection.driver.is_closed():
                try:
                    return await self._attempt(connection, work)
                except StorageError as error:
                    # A timeout is not repeated: it took long enough.
                    if isinstance(error.__cause__, TimeoutError) or self._current is not None:
                        raise
            connection = await self._connect()
            return await self._attempt(connection, work)

    async def connect(self) -> None:
        """Connect, unless there is a connection.

        Raises:
            StorageError: The database cannot be reached.
        """
        await self.run(_do_nothing)

    async def close(self) -> None:
        """Disconnect, after the function that runs now."""
        async with self._lock:
            if self._current is None:
                return
            driver, self._current = self._current.driver, None
            try:
                await driver.close(timeout=min(CLOSE_SECONDS, self.timeout_seconds))
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                driver.terminate()

    async def _connect(self) -> Connection:
        driver = await self._database.connect(command_timeout_seconds=self.timeout_seconds)
        connection = Connection(driver, prepares=self._database.prepared_statements)
        try:
            await self._attempt(connection, self._prepare)
        except BaseException:
            driver.terminate()
            raise
        self._current = connection
        return connection

    async def _prepare(self, connection: Connection) -> None:
        if self._on_connect is not None:
            await self._on_connect(connection)
        await connection.fetch(_ARRAY_TYPES, *([] for _ in range(5)))

    async def _attempt(
        self, connection: Connection, work: Callable[[Connection], Awaitable[ResultT]]
    ) -> ResultT:
        try:
            return await work(connection)
        except BaseException as error:
            if not is_harmless(error) or connection.driver.is_in_transaction():
                # The server may still run the statement. Nobody waits for it.
                connection.driver.terminate()
                self._current = None
            failure = storage_error(error, self._database.name)
            if failure is None:
                raise
            raise failure from error


class LoopConnection:
    """A connection for the event loop that opens it, which may end at any time.

    Commits on it need no hand-over to another thread, which takes longer than some commits.

    Attributes:
        connection: The connection, for use on that event loop only.
    """

    def __init__(self, connection: ReconnectingConnection) -> None:
        self.connection = connection
        self._loop = asyncio.get_running_loop()
        # An event loop that ends in good order closes all of its asynchronous generators.
        self._guard = _closing_at_the_end(connection)

    @classmethod
    async def open(cls, database: PostgresDatabase) -> LoopConnection:
        """Connect.

        Raises:
            StorageError: The database cannot be reached.
        """
        opened = cls(ReconnectingConnection(database))
        await opened.connection.connect()
        await anext(opened._guard)
        return opened

    def is_here(self) -> bool:
        """Tell whether the connection can be used on the running event loop."""
        return asyncio.get_running_loop() is self._loop

    async def close(self) -> None:
        """Disconnect, unless the event loop has ended, which disconnects as well."""
        if self.is_here():
            await self._close()
        elif self._loop.is_running():
            closing = self._close()
            try:
                future = asyncio.run_coroutine_threadsafe(closing, self._loop)
            except RuntimeError:  # it was closed just now
                closing.close()
            else:
                seconds = self.connection.timeout_seconds
                await asyncio.wait([asyncio.wrap_future(future)], timeout=seconds)

    async def _close(self) -> None:
        await self.connection.close()
        # The guard is running if the event loop ends at this moment.
        with contextlib.suppress(RuntimeError):
            await self._guard.aclose()


async def _closing_at_the_end(connection: ReconnectingConnection) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await connection.close()


async def _do_nothing(_connection: Connection) -> None:
    """Serve as the work where only the connection is needed."""
