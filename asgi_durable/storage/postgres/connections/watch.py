"""Statements without a response: they continue while the server works, and fail otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import weakref
from typing import Any

import asyncpg

from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.farewells import listen_for_farewell
from asgi_durable.storage.postgres.connections.inquiry import Inquiry, is_pooled

__all__ = ["WatchedDatabase", "farewell_on"]

logger = logging.getLogger(__name__)

# Methods of the driver's protocol that wait for a response of the server.
COPIES = frozenset({"copy_in", "copy_out"})
CALLS = COPIES | {
    "bind",
    "bind_execute",
    "bind_execute_many",
    "close_statement",
    "execute",
    "prepare",
    "query",
}
# How long a connection may take to close in good order: a lost server does not respond.
GOODBYE_SECONDS = 1.0


class WatchedDatabase:
    """Connects to a database, and watches every call of the driver's on those connections.

    A statement may take any time, and so may its lock. For a call that waits for longer than the
    library's own statements may, another connection asks the server again and again: a connection
    that the server does not work for any more is ended.

    Args:
        database: The database.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        # Unknown before the first connection.
        self._is_pooled: bool | None = None

    async def connect(self) -> asyncpg.Connection:
        """Connect on the running event loop; see ``PostgresDatabase.connect``."""
        connection = await self._database.connect()
        # No public name leads to what all statements, transactions and cursors go through.
        connection._protocol = _WatchedProtocol(connection, self)  # noqa: SLF001
        if self._is_pooled is None:
            try:
                self._is_pooled = await is_pooled(connection, self._database)
            except BaseException:
                connection.terminate()
                raise
        return connection

    @property
    def longest_wait_seconds(self) -> float:
        """How long a call waits before the first inquiry, and between two inquiries."""
        return self._database.command_timeout_seconds

    async def wait_for_silence(self, connection: asyncpg.Connection, *, is_copy: bool) -> None:
        """Return once it is certain that nothing will come on a connection any more."""
        inquiry = Inquiry(
            database=self._database,
            connection=connection,
            is_copy=is_copy,
            is_pooled=bool(self._is_pooled),
        )
        loop = asyncio.get_running_loop()
        last = None
        while True:
            asked_at = loop.time()
            doubt = await inquiry.find_doubt()
            if doubt is not None and doubt == last:
                break
            last = doubt
            await asyncio.sleep(asked_at + self.longest_wait_seconds - loop.time())
        logger.warning("%s is silent, a connection is ended: %s", self._database.name, doubt)


def farewell_on(connection: Any) -> asyncpg.PostgresError | None:
    """Return the error with which the server ended a watched connection, if it did."""
    protocol: Any = getattr(connection, "_protocol", None)
    return protocol.farewell.error if isinstance(protocol, _WatchedProtocol) else None


class _Call:
    """One call of the driver.

    Attributes:
        name: The name of the protocol's method.
        since: When it began, by the event loop's clock.
        watching: The task that asks whether the server works on it, if it takes long.
    """

    __slots__ = ("name", "since", "watching")

    def __init__(self, name: str, since: float) -> None:
        self.name = name
        self.since = since
        self.watching: asyncio.Task[None] | None = None


class _WatchedProtocol:
    """The protocol of one connection of the driver's, each call of which is watched.

    One timer at most runs for a connection, whatever the number of calls; it ends with the
    first period in which none waits.
    """

    def __init__(self, connection: Any, watched: WatchedDatabase) -> None:
        self._protocol: Any = connection._protocol  # noqa: SLF001
        # Weak, as in the driver: a connection that code drops without closing it warns at its end.
        self._connection = weakref.ref(connection)
        self._watched = watched
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._calls: dict[_Call, None] = {}
        self.farewell = listen_for_farewell(connection)

    def __getattr__(self, name: str) -> Any:
        if name in CALLS:
            return functools.partial(self._call, name)
        return getattr(self._protocol, name)

    async def close(self, timeout: float | None) -> None:
        seconds = GOODBYE_SECONDS if timeout is None else timeout
        # The driver's own limit does not cover all of it: it waits without a limit for the request
        # to cancel a statement, on a connection that may be silent as well.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._protocol.close(seconds)
        self._protocol.abort()

    async def _call(self, name: str, /, *args: Any, **options: Any) -> Any:
        call = _Call(name, self._loop.time())
        self._calls[call] = None
        if self._timer is None:
            self._look_in(self._watched.longest_wait_seconds)
        try:
            return await getattr(self._protocol, name)(*args, **options)
        finally:
            del self._calls[call]
            if call.watching is not None:
                call.watching.cancel()
                await asyncio.wait([call.watching])

    def _look_in(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        # The first call has waited the longest.
        call = next(iter(self._calls), None)
        if call is None or call.watching is not None:
            return
        rest = call.since + self._watched.longest_wait_seconds - self._loop.time()
        if rest > 0:
            self._look_in(rest)
        else:
            call.watching = self._loop.create_task(self._watch(call))

    async def _watch(self, call: _Call) -> None:
        connection = self._connection()
        if connection is not None:
            is_copy = call.name in COPIES
            await self._watched.wait_for_silence(connection, is_copy=is_copy)
            connection.terminate()
