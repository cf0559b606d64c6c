"""A connection that is made when it is needed, and again once it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg

from asgi_durable.errors import StorageError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.errors import is_harmless, storage_error

__all__ = ["ReconnectingConnection", "Wire"]

ResultT = TypeVar("ResultT")

# How long a connection may take to close in good order: a lost server does not respond.
GOODBYE_SECONDS = 1.0

# Invariant: a process that stops in the middle must not hold its locks for ever, for example the
# fence of a dead executor, whose workflows others wait for.
_BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '15s'"
# The types that the driver asks the server about once, before the first batch.
_ARRAY_TYPES = "SELECT $1::text[], $2::bytea[], $3::int4[], $4::int8[], $5::bool[]"


class Wire:
    """One connection of the driver's, for our own statements.

    Args:
        connection: The driver's.
        prepares: False if a statement may not outlive its transaction.
    """

    def __init__(self, connection: asyncpg.Connection, *, prepares: bool) -> None:
        self.connection = connection
        self._prepares = prepares

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        """Run a statement and return its rows; outside a transaction it is one of its own."""
        rows: list[Any]
        if self._prepares or self.connection.is_in_transaction():
            rows = await self.connection.fetch(statement, *values)
            return rows
        # Invariant: parsed and run in one transaction. A pooler may give what comes after to
        # another server connection, which does not know the statement.
        async with self.transaction():
            rows = await self.connection.fetch(statement, *values)
            return rows

    async def fetch_one(self, statement: str, *values: Any) -> Any:
        """Run a statement that returns one row."""
        (row,) = await self.fetch(statement, *values)
        return row

    async def execute(self, statement: str) -> None:
        """Run a statement without parameters that is not worth being prepared."""
        await self.connection.execute(statement)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Commit at the end, roll back on any exception."""
        await self.connection.execute(_BEGIN)
        try:
            yield
        except BaseException:
            if not self.connection.is_closed():
                await self.connection.execute("ROLLBACK")
            raise
        await self.connection.execute("COMMIT")


class ReconnectingConnection:
    """Does one task at a time on a connection, all on one event loop.

    Args:
        database: The database.
        greet: Called with every new connection, before anything else.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        *,
        greet: Callable[[Wire], Awaitable[None]] | None = None,
    ) -> None:
        self._database = database
        self._greet = greet
        self._lock = asyncio.Lock()
        self._wire: Wire | None = None
        self.timeout_seconds = database.command_timeout_seconds

    async def run(self, work: Callable[[Wire], Awaitable[ResultT]]) -> ResultT:
        """Do some work, which may be done twice.

        A lost connection, for example cut by a firewall or by a restart of the server, is
        replaced, and the work done once more.

        Raises:
            StorageError: The database failed. A row that it cannot hold passes as it is.
        """
        async with self._lock:
            wire = self._wire
            if wire is not None and not wire.connection.is_closed():
                try:
                    return await self._attempt(wire, work)
                except StorageError as error:
                    # Not after a timeout: that was long enough.
                    if isinstance(error.__cause__, TimeoutError) or self._wire is not None:
                        raise
            wire = await self._connect()
            return await self._attempt(wire, work)

    async def connect(self) -> None:
        """Connect, if that is not done yet.

        Raises:
            StorageError: It cannot be done.
        """
        await self.run(_nothing)

    async def close(self) -> None:
        """Disconnect, after the work under way."""
        async with self._lock:
            if self._wire is None:
                return
            connection, self._wire = self._wire.connection, None
            try:
                await connection.close(timeout=min(GOODBYE_SECONDS, self.timeout_seconds))
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    async def _connect(self) -> Wire:
        connection = await self._database.connect(command_timeout_seconds=self.timeout_seconds)
        wire = Wire(connection, prepares=self._database.prepared_statements)
        try:
            await self._attempt(wire, self._introduce)
        except BaseException:
            connection.terminate()
            raise
        self._wire = wire
        return wire

    async def _introduce(self, wire: Wire) -> None:
        if self._greet is not None:
            await self._greet(wire)
        await wire.fetch(_ARRAY_TYPES, *([] for _ in range(5)))

    async def _attempt(self, wire: Wire, work: Callable[[Wire], Awaitable[ResultT]]) -> ResultT:
        try:
            return await work(wire)
        except BaseException as error:
            if not is_harmless(error) or wire.connection.is_in_transaction():
                # The result of the statement is unknown: nobody waits for it.
                wire.connection.terminate()
                self._wire = None
            failure = storage_error(error, self._database.name)
            if failure is None:
                raise
            raise failure from error


async def _nothing(_wire: Wire) -> None:
    """Being connected is all that is wanted."""
