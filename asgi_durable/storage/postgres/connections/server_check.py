"""Checks on another connection whether the server still works for a connection that waits."""

from __future__ import annotations

import asyncio
import errno
import ssl
from dataclasses import dataclass, replace
from typing import Any

import asyncpg

from asgi_durable.errors import StorageError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.reconnecting import Connection
from asgi_durable.storage.postgres.connections.sockets import bytes_moved
from asgi_durable.storage.postgres.errors import DRIVER_ERRORS, sqlstate_of

__all__ = ["ServerCheck", "is_pooled"]

# Bytes that the peer has acknowledged and sent, where the system counts them.
Moved = tuple[int, int] | None

UNREACHABLE = "the server does not respond"
UNKNOWN = "the server does not know the connection"
# Error codes of a server that is down, or of a pooler whose server is down.
AWAY = ("08", "57P")
# This process has too many open files to connect, which says nothing about the server.
OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE})
_PID = "SELECT pg_backend_pid()"
# The state is NULL for a connection of another role, and where the server does not track it.
_ACTIVITY = """
SELECT pg_backend_pid() AS own_pid, a.pid, a.state, a.wait_event, a.state_change::text
FROM (SELECT) AS one LEFT JOIN pg_stat_activity AS a
ON a.pid = $1::int4 AND coalesce(a.backend_type, 'client backend') = 'client backend'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCheck:
    """Asks the server what it does for a connection that waits for a response.

    Attributes:
        database: The database that the connection leads to.
        connection: The connection that waits.
        is_copy: True if rows are being copied, at the pace of the application.
        is_pooled: True if a pooler lends out the server's connections.
    """

    database: PostgresDatabase
    connection: asyncpg.Connection
    is_copy: bool
    is_pooled: bool

    async def find_doubt(self) -> object | None:
        """Return the reason to doubt that a response will come, ``None`` if there is none.

        The same doubt in two checks is a certainty: nothing has happened in between. A statement
        or a response that was on its way has arrived by the second check.
        """
        moved = bytes_moved(self.connection)
        # All hosts are asked, as it is unknown here which one the connection leads to.
        hosts = [replace(self.database, dsns=(dsn,)) for dsn in self.database.dsns]
        doubts = await asyncio.gather(*(self._find_doubt_at(host, moved) for host in hosts))
        return None if None in doubts else (moved, *doubts)

    async def _find_doubt_at(self, host: PostgresDatabase, moved: Moved) -> str | None:
        try:
            own = await host.connect(command_timeout_seconds=host.command_timeout_seconds)
        except StorageError as error:
            return None if _shows_life(error.__cause__) else UNREACHABLE
        try:
            if self.is_pooled:
                # The pooler is there. A statement may wait for one of its connections.
                return None
            connection = Connection(own, prepares=host.prepared_statements)
            row = await connection.fetch_one(_ACTIVITY, self.connection.get_server_pid())
            if row["own_pid"] != own.get_server_pid():
                return None
            return self._doubt_of(row, moved)
        except (OSError, *DRIVER_ERRORS) as error:
            return None if _shows_life(error) else UNREACHABLE
        finally:
            own.terminate()

    def _doubt_of(self, row: Any, moved: Moved) -> str | None:
        if row["pid"] is None:
            return UNKNOWN
        state, waits_for = row["state"], row["wait_event"]
        description = f"{state}, {waits_for} since {row['state_change']}"
        if state is not None and state.startswith("idle"):
            return description
        # The server has received only a part of the statement, or its rows are not taken. Where
        # the system counts the bytes that move, such a statement differs from a slow one.
        is_stuck = waits_for == "ClientWrite" and moved is not None
        waits_for_us = waits_for == "ClientRead" or is_stuck
        return description if waits_for_us and not self.is_copy else None


async def is_pooled(connection: asyncpg.Connection, database: PostgresDatabase) -> bool:
    """Tell whether a connection leads to a pooler, which reports a process id of its own."""
    own = Connection(connection, prepares=database.prepared_statements)
    (pid,) = await own.fetch_one(_PID)
    return bool(pid != connection.get_server_pid())


def _shows_life(error: BaseException | None) -> bool:
    """Tell whether an error comes from a server that works, or from this process."""
    if error is None or isinstance(error, ssl.SSLCertVerificationError):
        return True
    if code := sqlstate_of(error):
        return not code.startswith(AWAY)
    return isinstance(error, OSError) and error.errno in OUR_OWN
