"""The connection that holds the locks of this process's executors and receives messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg

from asgi_durable.concurrency.backoff import Backoff
from asgi_durable.errors import StorageError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.reconnecting import (
    Connection,
    ReconnectingConnection,
)
from asgi_durable.storage.postgres.rows import PostgresNames

__all__ = ["LOCK_CLASS", "PostgresSession", "Registration", "new_lock_key"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# First half of the key of every executor's advisory lock; the second half is random.
LOCK_CLASS = 0x64757261
FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 0.5
_PID = "SELECT pg_backend_pid()"
# PostgreSQL's limit for the payload of a NOTIFY.
MAX_PAYLOAD_BYTES = 7999


def new_lock_key() -> int:
    """Return a random key, which is unlikely to be in use."""
    return secrets.randbelow(2**31 - 1) + 1


@dataclass(slots=True)
class Registration:
    """An executor of this process.

    Attributes:
        lock_key: The key of the advisory lock that the connection holds for it; ``None`` if the
            connection cannot hold locks.
        renewed_at: The time of the last renewal of its lease, by ``time.monotonic()``.
    """

    executor_id: str
    on_message: Callable[[str], None]
    lock_key: int | None = None
    renewed_at: float = field(default_factory=time.monotonic)


class PostgresSession:
    """A connection that is opened again as soon as it is lost, not at its next use.

    Other processes declare an executor dead if its lock is missing in two heartbeats. The
    connection has to hold the lock again before that.

    Args:
        database: The database.
        names: The tables' names.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._database = database
        self._names = names
        self._connection = ReconnectingConnection(database, on_connect=self._on_connect)
        self._sender = secrets.token_hex(8)
        self._is_closed = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._set_lock = (
            f"UPDATE {names.executors} SET session_lock = $2::int4 "
            "WHERE executor_id = $1::text AND state = 'ALIVE'"
        )
        self.registrations: dict[str, Registration] = {}
        # True if the connection is a session on the server, False if a pooler lends it.
        self.is_session = False
        # Counts the connections, as locks that one of them missed say nothing about the next.
        self.generation = 0

    async def run(self, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """Run a function with the connection; see ``ReconnectingConnection.run``."""
        return await self._connection.run(work)

    def limit_statements(self, lease_seconds: float) -> None:
        """Limit the time of statements so that a renewal can be repeated before a lease ends."""
        limit = max(1.0, lease_seconds / 3)
        self._connection.timeout_seconds = min(self._connection.timeout_seconds, limit)

    async def close(self) -> None:
        """Disconnect; the server releases all locks then."""
        self._is_closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting])
        await self._connection.close()

    async def send(self, executor_id: str | None, message: str) -> None:
        """Send a message to one executor, or to those of all other processes."""
        payload = json.dumps({"to": executor_id, "from": self._sender, "message": message})
        if len(payload) > MAX_PAYLOAD_BYTES:
            logger.debug("A message of %d bytes is too long to be sent", len(payload))
            return

        async def notify(connection: Connection) -> None:
            if self.is_session:
                await connection.fetch("SELECT pg_notify($1, $2)", self._names.channel, payload)

        await self._connection.run(notify)

    async def unlock(self, connection: Connection, registration: Registration) -> None:
        """Release an executor's lock."""
        if self.is_session and registration.lock_key is not None:
            await connection.fetch(
                "SELECT pg_advisory_unlock($1::int4, $2::int4)", LOCK_CLASS, registration.lock_key
            )

    async def _on_connect(self, connection: Connection) -> None:
        self.is_session = await self._detect_session(connection)
        self.generation += 1
        for registration in self.registrations.values():
            await self._lock_again(connection, registration)
        if self.is_session:
            await connection.driver.add_listener(self._names.channel, self._receive)
        connection.driver.add_termination_listener(self._on_lost)

    async def _detect_session(self, connection: Connection) -> bool:
        """Tell whether the connection is a session; a pooler reports a process id of its own."""
        wanted = self._database.session_features
        if wanted is False:
            return False
        (pid,) = await connection.fetch_one(_PID)
        is_direct = bool(pid == connection.driver.get_server_pid())
        if wanted and not is_direct and await self._is_shared(connection, pid):
            msg = (
                f"{self._database.name}: session_features=on, but the pooler gives a connection "
                "to others between transactions; leave it out, or use a pool in session mode"
            )
            raise StorageError(msg)
        return wanted or is_direct

    async def _is_shared(self, connection: Connection, pid: int) -> bool:
        """Tell whether a pooler lends one server process to two connections in turn."""
        seconds = self._connection.timeout_seconds
        driver = await self._database.connect(command_timeout_seconds=seconds)
        try:
            other = Connection(driver, prepares=False)
            # Asked twice, as a pooler may lend out its connections in turn.
            others = {(await other.fetch_one(_PID))[0] for _ in range(2)}
        finally:
            driver.terminate()
        (again,) = await connection.fetch_one(_PID)
        return again != pid or pid in others or len(others) > 1

    async def _lock_again(self, connection: Connection, registration: Registration) -> None:
        before = registration.lock_key
        if not self.is_session:
            registration.lock_key = None
        else:
            key = before or new_lock_key()
            while not await self._try_lock(connection, key):
                # The server has not noticed yet that the previous connection is lost.
                key = new_lock_key()
            registration.lock_key = key
        # Invariant: the lock is held before other processes can read its key.
        if registration.lock_key != before:
            await connection.fetch(self._set_lock, registration.executor_id, registration.lock_key)

    async def _try_lock(self, connection: Connection, key: int) -> bool:
        (locked,) = await connection.fetch_one(
            "SELECT pg_try_advisory_lock($1::int4, $2::int4)", LOCK_CLASS, key
        )
        return bool(locked)

    def _on_lost(self, _connection: asyncpg.Connection) -> None:
        running = self._reconnecting is not None and not self._reconnecting.done()
        if self.registrations and not self._is_closed and not running:
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        backoff = Backoff(FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, jitter=0.2)
        while True:
            try:
                await self._connection.connect()
            except StorageError as error:
                if backoff.is_worth_logging():
                    logger.warning("The session's connection is lost, trying again: %s", error)
            else:
                return
            await backoff.wait()

    def _receive(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """Pass a message on. Any user of the database may have sent it, so it is checked first."""
        sent: Any = None
        with contextlib.suppress(ValueError):
            sent = json.loads(str(payload))
        if not isinstance(sent, dict) or not isinstance(sent.get("message"), str):
            return
        target = sent.get("to")
        for registration in list(self.registrations.values()):
            is_addressed = target == registration.executor_id
            if is_addressed or (target is None and sent.get("from") != self._sender):
                registration.on_message(sent["message"])
