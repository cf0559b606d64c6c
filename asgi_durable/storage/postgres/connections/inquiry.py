"""Asks on another connection whether the server still works for one of its connections."""

from __future__ import annotations

import asyncio
import errno
import ssl
from dataclasses import dataclass, replace
from typing import Any

import asyncpg

from asgi_durable.errors import StorageError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase
from asgi_durable.storage.postgres.connections.reconnecting import Wire
from asgi_durable.storage.postgres.connections.silence import bytes_moved
from asgi_durable.storage.postgres.errors import DRIVER_ERRORS, sqlstate_of

__all__ = ["Inquiry", "is_pooled"]

Moved = tuple[int, int] | None

UNANSWERED = "nobody answers"
UNKNOWN = "the server does not know the connection"
# Errors of a server that is away, or of a pooler whose server is away.
AWAY = ("08", "57P")
# This process has no more file descriptors, so it cannot ask.
OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE})
_PID = "SELECT pg_backend_pid()"
# The connection of another role has no state, and so has one on a server that does not track it.
_QUESTION = """
SELECT pg_backend_pid() AS own_pid, a.pid, a.state, a.wait_event, a.state_change::text
FROM (SELECT) AS one LEFT JOIN pg_stat_activity AS a
ON a.pid = $1::int4 AND coalesce(a.backend_type, 'client backend') = 'client backend'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """Asks what the server does for a connection on which a response is awaited.

    Attributes:
        database: The database.
        connection: The connection that waits.
        is_copy: True if rows are being copied, at the pace of the code that reads or writes them.
        is_pooled: True if a pooler shares the server's connections.
    """

    database: PostgresDatabase
    connection: asyncpg.Connection
    is_copy: bool
    is_pooled: bool

    async def find_doubt(self) -> object | None:
        """Return why no response may come any more, ``None`` if there is no reason to think so.

        The same doubt twice is a certainty, as nothing has happened in between: a response or a
        statement in transit has arrived by then.
        """
        moved = bytes_moved(self.connection)
        # Each host by itself: a host without such a connection says nothing about another one.
        hosts = [replace(self.database, dsns=(dsn,)) for dsn in self.database.dsns]
        doubts = await asyncio.gather(*(self._ask(host, moved) for host in hosts))
        return None if None in doubts else (moved, *doubts)

    async def _ask(self, host: PostgresDatabase, moved: Moved) -> str | None:
        try:
            asking = await host.connect(command_timeout_seconds=host.command_timeout_seconds)
        except StorageError as error:
            return None if _shows_life(error.__cause__) else UNANSWERED
        try:
            if self.is_pooled:
                # It may have to wait for a connection of the pool as long as others do.
                return None
            wire = Wire(asking, prepares=host.prepared_statements)
            row = await wire.fetch_one(_QUESTION, self.connection.get_server_pid())
            if row["own_pid"] != asking.get_server_pid():
                return None
            return self._doubt_of(row, moved)
        except (OSError, *DRIVER_ERRORS) as error:
            return None if _shows_life(error) else UNANSWERED
        finally:
            asking.terminate()

    def _doubt_of(self, row: Any, moved: Moved) -> str | None:
        if row["pid"] is None:
            return UNKNOWN
        state, waits_for = row["state"], row["wait_event"]
        seen = f"{state}, {waits_for} since {row['state_change']}"
        if state is not None and state.startswith("idle"):
            return seen
        # Only a part of the statement has come, or nobody takes its rows. Slow connections differ
        # from that where the system counts the bytes that move.
        is_stuck = waits_for == "ClientWrite" and moved is not None
        waits_for_us = waits_for == "ClientRead" or is_stuck
        return seen if waits_for_us and not self.is_copy else None


async def is_pooled(connection: asyncpg.Connection, database: PostgresDatabase) -> bool:
    """Tell whether a connection leads to a pooler, which announces a process id of its own."""
    (pid,) = await Wire(connection, prepares=database.prepared_statements).fetch_one(_PID)
    return bool(pid != connection.get_server_pid())


def _shows_life(error: BaseException | None) -> bool:
    """Tell whether a refusal comes from a working server, or from this process."""
    if error is None or isinstance(error, ssl.SSLCertVerificationError):
        return True
    if code := sqlstate_of(error):
        return not code.startswith(AWAY)
    return isinstance(error, OSError) and error.errno in OUR_OWN
