"""The tables of a SQLite file: their migration, and the secret of the requests' ids."""

from __future__ import annotations

import sqlite3
import time

from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from asgi_durable.errors import StorageError
from asgi_durable.storage.records import StoredSecret
from asgi_durable.storage.rows import REQUEST_IDS, ROLLOUT_US, new_secret
from asgi_durable.storage.schema import SECRETS_VERSION, pending_migrations
from asgi_durable.storage.sqlite.file import write_transaction
from asgi_durable.storage.tables import schema_version, secrets, workflows

__all__ = ["migrate", "read_secret"]

_INSERT_SECRET = f"INSERT OR IGNORE INTO {secrets.name} VALUES (?, ?, ?, ?)"
_SELECT_SECRET = f"SELECT value, added_later FROM {secrets.name} WHERE name = ?"
# Old rows come first in the table, so this query ends soon if there are any.
_CLEAR_ADDED_LATER = (
    f"UPDATE {secrets.name} AS s SET added_later = false "
    "WHERE name = ? AND added_later AND created_at_us < ? AND NOT EXISTS "
    f"(SELECT 1 FROM {workflows.name} AS w WHERE w.fingerprint IS NOT NULL "
    "AND w.created_at_us < s.created_at_us + ?)"
)


def migrate(connection: sqlite3.Connection, database: str) -> None:
    """Create the tables, or bring them up to date, in one transaction.

    Args:
        connection: The connection that writes.
        database: The name of the database, for messages.

    Raises:
        StorageError: A newer version of the library has written the file.
    """
    dialect = SQLiteDialect_pysqlite()
    version = schema_version.name
    with write_transaction(connection):
        connection.execute(f"CREATE TABLE IF NOT EXISTS {version} (version INTEGER NOT NULL)")
        found = connection.execute(f"SELECT max(version) FROM {version}").fetchone()[0] or 0
        missing = pending_migrations(found, database)
        for migration in missing:
            for statement in migration(dialect):
                connection.execute(statement)
        _make_secret(connection, added_later=0 < found < SECRETS_VERSION)
        # Written even if nothing changed, so that a read-only file is refused here, not later.
        connection.execute(f"DELETE FROM {version}")
        connection.execute(f"INSERT INTO {version} VALUES (?)", (found + len(missing),))


def read_secret(connection: sqlite3.Connection) -> StoredSecret:
    """See ``Secrets.read_secret``."""
    row = connection.execute(_SELECT_SECRET, (REQUEST_IDS,)).fetchone()
    if row is None:
        msg = f"the row of {secrets.name} has been deleted; start again to have a new one"
        raise StorageError(msg)
    return StoredSecret(value=row[0], added_later=bool(row[1]))


def _make_secret(connection: sqlite3.Connection, *, added_later: bool) -> None:
    """Make the secret if there is none.

    Args:
        connection: The connection that writes, in the transaction that migrates.
        added_later: True if the file had our tables before it had a secret.
    """
    connection.execute(_INSERT_SECRET, new_secret(added_later=added_later))
    long_ago_us = time.time_ns() // 1000 - ROLLOUT_US
    connection.execute(_CLEAR_ADDED_LATER, (REQUEST_IDS, long_ago_us, ROLLOUT_US))
