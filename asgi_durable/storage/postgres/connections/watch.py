"""Watches connections whose statements may take any time: ends those whose server is lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import weakref
from typing import Any

import asyncpg

from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.server_check import ServerCheck, is_pooled

__all__ = ["WatchedDatabase", "closing_error_of"]

logger = logging.getLogger(__name__)

# Attribute of the driver's connections: their protocol, through which all statements,
# transactions and cursors go. No public name leads to it.
PROTOCOL = "_protocol"
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
# Limits the orderly close of a connection: a lost server does not respond.
CLOSE_SECONDS = 1.0
# Of the server's message that reports an error: its type, a field's code, and its value.
ERROR_RESPONSE = b"E"
SEVERITY, FATAL = "V", "FATAL"
# One byte for the type, four for the length.
HEADER_BYTES = 5


class WatchedDatabase:
    """Connects to a database, and watches every call of the driver on those connections.

    A statement of the application may take any time, and so may its wait for a lock. A call that
    takes longer than ``command_timeout`` is looked into on another connection, repeatedly. If
    the server does not work on the call any more, the connection is ended.

    Args:
        database: The database.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        # None until the first connection is made.
        self._is_pooled: bool | None = None

    async def connect(self) -> asyncpg.Connection:
        """Connect on the running event loop; see ``PostgresDatabase.connect``."""
        connection = await self._database.connect()
        setattr(connection, PROTOCOL, _WatchedProtocol(connection, self))
        if self._is_pooled is None:
            try:
                self._is_pooled = await is_pooled(connection, self._database)
            except BaseException:
                connection.terminate()
                raise
        return connection

    @property
    def check_interval_seconds(self) -> float:
        """How long a call waits before the first check, and between two checks."""
        return self._database.command_timeout_seconds

    async def wait_for_loss(self, connection: asyncpg.Connection, *, is_copy: bool) -> None:
        """Return once it is certain that a connection gets no response any more."""
        check = ServerCheck(
            database=self._database,
            connection=connection,
            is_copy=is_copy,
            is_pooled=bool(self._is_pooled),
        )
        loop = asyncio.get_running_loop()
        last = None
        while True:
            checked_at = loop.time()
            doubt = await check.find_doubt()
            if doubt is not None and doubt == last:
                break
            last = doubt
            await asyncio.sleep(checked_at + self.check_interval_seconds - loop.time())
        logger.warning("%s is silent, a connection is ended: %s", self._database.name, doubt)


def closing_error_of(connection: Any) -> asyncpg.PostgresError | None:
    """Return the error with which the server closed a watched connection, if it did."""
    protocol: Any = getattr(connection, PROTOCOL, None)
    return protocol.closing_error if isinstance(protocol, _WatchedProtocol) else None


class _Call:
    """One call of the driver's protocol.

    Attributes:
        name: The method's name.
        since: The time when it began, by the event loop's clock.
        watching: The task that checks whether the server works on it, if it takes long.
    """

    __slots__ = ("name", "since", "watching")

    def __init__(self, name: str, since: float) -> None:
        self.name = name
        self.since = since
        self.watching: asyncio.Task[None] | None = None


class _WatchedProtocol:
    """The protocol of one connection of the driver, each call of which is watched.

    A connection has one timer at most, however many calls there are. The timer ends after an
    interval in which no call waits.
    """

    def __init__(self, connection: Any, watched: WatchedDatabase) -> None:
        self._protocol: Any = getattr(connection, PROTOCOL)
        # Weak, as the driver's own reference is: it warns where a connection was not closed
        # before it is collected.
        self._connection = weakref.ref(connection)
        self._watched = watched
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._calls: dict[_Call, None] = {}
        self._listener = _listen(connection)

    def __getattr__(self, name: str) -> Any:
        if name in CALLS:
            return functools.partial(self._call, name)
        return getattr(self._protocol, name)

    @property
    def closing_error(self) -> asyncpg.PostgresError | None:
        return self._listener.closing_error

    async def close(self, timeout: float | None) -> None:
        seconds = CLOSE_SECONDS if timeout is None else timeout
        # The driver's own limit does not cover its wait for the cancellation of a statement,
        # which never ends on a lost connection.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._protocol.close(seconds)
        self._protocol.abort()

    async def _call(self, name: str, /, *args: Any, **options: Any) -> Any:
        call = _Call(name, self._loop.time())
        self._calls[call] = None
        if self._timer is None:
            self._start_timer(self._watched.check_interval_seconds)
        try:
            return await getattr(self._protocol, name)(*args, **options)
        finally:
            del self._calls[call]
            if call.watching is not None:
                call.watching.cancel()
                await asyncio.wait([call.watching])

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        # The calls are in the order in which they began.
        call = next(iter(self._calls), None)
        if call is None or call.watching is not None:
            return
        rest = call.since + self._watched.check_interval_seconds - self._loop.time()
        if rest > 0:
            self._start_timer(rest)
        else:
            call.watching = self._loop.create_task(self._watch(call))

    async def _watch(self, call: _Call) -> None:
        connection = self._connection()
        if connection is not None:
            await self._watched.wait_for_loss(connection, is_copy=call.name in COPIES)
            connection.terminate()


class _Listener(asyncio.Protocol):
    """Passes all events of a connection on to the driver, and remembers the server's last error.

    asyncpg drops an error that arrives while no call waits. Its next call raises that the
    connection is closed, without the reason.

    Args:
        protocol: The driver's protocol.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._last_error = b""

    def data_received(self, data: bytes) -> None:
        if data[:1] == ERROR_RESPONSE:
            self._last_error = data
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        is_left_open: bool | None = self._protocol.eof_received()
        return is_left_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    @property
    def closing_error(self) -> asyncpg.PostgresError | None:
        """The error with which the server closed the connection, ``None`` if it did not."""
        fields = dict(_error_fields(self._last_error))
        if fields.get(SEVERITY) != FATAL:
            return None
        error: asyncpg.PostgresError = asyncpg.PostgresError.new(fields)
        return error


def _listen(connection: Any) -> _Listener:
    """Put a listener between a new connection of the driver and its transport."""
    transport: Any = getattr(connection, "_transport", None)
    listener = _Listener(transport.get_protocol())
    transport.set_protocol(listener)
    return listener


def _error_fields(message: bytes) -> list[tuple[str, str]]:
    """Return the fields of a server's error message, by their codes of one character."""
    length = int.from_bytes(message[1:HEADER_BYTES], "big")
    texts = message[HEADER_BYTES : 1 + length].decode(errors="replace").split("\0")
    return [(text[0], text[1:]) for text in texts if text]
