"""The connection that says that this process lives, and that messages arrive on."""

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
from asgi_durable.storage.postgres.connections.reconnecting import ReconnectingConnection, Wire
from asgi_durable.storage.postgres.rows import PostgresNames

__all__ = ["LOCK_CLASS", "PostgresSession", "Registration", "new_lock_key"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# The first half of every executor's advisory lock; the second is its random key.
LOCK_CLASS = 0x64757261
FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 0.5
_PID = "SELECT pg_backend_pid()"
# Of a NOTIFY's payload, in bytes.
LONGEST_PAYLOAD = 7999


def new_lock_key() -> int:
    """Return a key that hardly any other executor has."""
    return secrets.randbelow(2**31 - 1) + 1


@dataclass(slots=True)
class Registration:
    """An executor of this process.

    Attributes:
        lock_key: Of the advisory lock that the connection holds for it, if it can hold any.
        renewed_at: When its lease was last renewed, by ``time.monotonic()``.
    """

    executor_id: str
    on_message: Callable[[str], None]
    lock_key: int | None = None
    renewed_at: float = field(default_factory=time.monotonic)


class PostgresSession:
    """A connection that is made again at once when it is lost, not when it is needed next.

    Others find an executor dead if they miss its lock in two beats: it has to be back sooner.

    Args:
        database: Where to.
        names: The tables' names.
    """

    def __init__(self, database: PostgresDatabase, names: PostgresNames) -> None:
        self._database = database
        self._names = names
        self._link = ReconnectingConnection(database, greet=self._greet)
        self._sender = secrets.token_hex(8)
        self._is_closed = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._set_lock = (
            f"UPDATE {names.executors} SET session_lock = $2::int4 "
            "WHERE executor_id = $1::text AND state = 'ALIVE'"
        )
        self.registrations: dict[str, Registration] = {}
        # True if the connection is a session of its own on the server, and not a pooler's.
        self.is_session = False
        # Counts the connections: what was seen on one tells nothing on the next.
        self.generation = 0

    async def run(self, work: Callable[[Wire], Awaitable[ResultT]]) -> ResultT:
        """Do some work on the connection; see ``ReconnectingConnection.run``."""
        return await self._link.run(work)

    def hurry(self, lease_seconds: float) -> None:
        """Let no statement take so long that a lease ends before the next attempt."""
        longest = max(1.0, lease_seconds / 3)
        self._link.timeout_seconds = min(self._link.timeout_seconds, longest)

    async def close(self) -> None:
        """Disconnect; what is locked becomes free."""
        self._is_closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting])
        await self._link.close()

    async def send(self, executor_id: str | None, message: str) -> None:
        """Send a message to one executor, or to those of all other processes."""
        payload = json.dumps({"to": executor_id, "from": self._sender, "message": message})
        if len(payload) > LONGEST_PAYLOAD:
            logger.debug("A message of %d bytes is too long to be sent", len(payload))
            return

        async def notify(wire: Wire) -> None:
            if self.is_session:
                await wire.fetch("SELECT pg_notify($1, $2)", self._names.channel, payload)

        await self._link.run(notify)

    async def unlock(self, wire: Wire, registration: Registration) -> None:
        """Give up an executor's lock."""
        if self.is_session and registration.lock_key is not None:
            await wire.fetch(
                "SELECT pg_advisory_unlock($1::int4, $2::int4)", LOCK_CLASS, registration.lock_key
            )

    async def _greet(self, wire: Wire) -> None:
        self.is_session = await self._find_out(wire)
        self.generation += 1
        for registration in self.registrations.values():
            await self._lock_again(wire, registration)
        if self.is_session:
            await wire.connection.add_listener(self._names.channel, self._receive)
        wire.connection.add_termination_listener(self._on_lost)

    async def _find_out(self, wire: Wire) -> bool:
        """Tell whether the server's process is ours: a pooler announces a number of its own."""
        wanted = self._database.session_features
        if wanted is False:
            return False
        (pid,) = await wire.fetch_one(_PID)
        is_announced = bool(pid == wire.connection.get_server_pid())
        if wanted and not is_announced and await self._is_shared(wire, pid):
            msg = (
                f"{self._database.name}: session_features=on, but the pooler gives a connection "
                "to others between transactions; leave it out, or use a pool in session mode"
            )
            raise StorageError(msg)
        return wanted or is_announced

    async def _is_shared(self, wire: Wire, pid: int) -> bool:
        """Tell whether a pooler lets two connections of ours have one server process in turn."""
        other = await self._database.connect(command_timeout_seconds=self._link.timeout_seconds)
        try:
            # Twice: one that gives them out in a circle comes round.
            others = {await self._pid_of(other) for _ in range(2)}
        finally:
            other.terminate()
        (again,) = await wire.fetch_one(_PID)
        return again != pid or pid in others or len(others) > 1

    async def _pid_of(self, connection: asyncpg.Connection) -> int:
        (pid,) = await Wire(connection, prepares=False).fetch_one(_PID)
        return int(pid)

    async def _lock_again(self, wire: Wire, registration: Registration) -> None:
        before = registration.lock_key
        if not self.is_session:
            registration.lock_key = None
        else:
            key = before or new_lock_key()
            while not await self._try_lock(wire, key):
                # The server has not noticed yet that the connection before is lost.
                key = new_lock_key()
            registration.lock_key = key
        # Invariant: locked before others can look for the lock.
        if registration.lock_key != before:
            await wire.fetch(self._set_lock, registration.executor_id, registration.lock_key)

    async def _try_lock(self, wire: Wire, key: int) -> bool:
        (locked,) = await wire.fetch_one(
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
                await self._link.connect()
            except StorageError as error:
                if backoff.is_worth_logging():
                    logger.warning("The session's connection is lost, trying again: %s", error)
            else:
                return
            await backoff.wait()

    def _receive(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """Pass a message on; anybody who may connect to the database can have sent it."""
        sent: Any = None
        with contextlib.suppress(ValueError):
            sent = json.loads(str(payload))
        if not isinstance(sent, dict) or not isinstance(sent.get("message"), str):
            return
        target = sent.get("to")
        for registration in list(self.registrations.values()):
            is_meant = target == registration.executor_id
            if is_meant or (target is None and sent.get("from") != self._sender):
                registration.on_message(sent["message"])
