"""Making and reading the secret of the requests' ids in a SQLite file."""

from __future__ import annotations

import sqlite3
import time

from asgi_durable.errors import StorageError
from asgi_durable.storage.records import StoredSecret
from asgi_durable.storage.rows import OF_REQUEST_IDS, ROLLOUT_US, new_secret
from asgi_durable.storage.tables import secrets, workflows

__all__ = ["keep_secret", "read_secret"]

_INSERT = f"INSERT OR IGNORE INTO {secrets.name} VALUES (?, ?, ?, ?)"
_SELECT = f"SELECT value, added_later FROM {secrets.name} WHERE name = ?"
# Oldest rows come first, so this ends soon where there are any.
_END_OF_FORMER = (
    f"UPDATE {secrets.name} AS s SET added_later = false "
    "WHERE name = ? AND added_later AND created_at_us < ? AND NOT EXISTS "
    f"(SELECT 1 FROM {workflows.name} AS w WHERE w.fingerprint IS NOT NULL "
    "AND w.created_at_us < s.created_at_us + ?)"
)


def keep_secret(cursor: sqlite3.Cursor, *, added_later: bool) -> None:
    """Make the secret if there is none; in the transaction that migrates.

    Args:
        cursor: Of the connection that writes.
        added_later: True if the file had our tables before it had a secret.
    """
    cursor.execute(_INSERT, new_secret(added_later=added_later))
    long_ago_us = time.time_ns() // 1000 - ROLLOUT_US
    cursor.execute(_END_OF_FORMER, (OF_REQUEST_IDS, long_ago_us, ROLLOUT_US))


def read_secret(connection: sqlite3.Connection) -> StoredSecret:
    """See ``Secrets.read_secret``."""
    row = connection.execute(_SELECT, (OF_REQUEST_IDS,)).fetchone()
    if row is None:
        msg = f"the row of {secrets.name} has been deleted; start again to have a new one"
        raise StorageError(msg)
    return StoredSecret(value=row[0], added_later=bool(row[1]))
