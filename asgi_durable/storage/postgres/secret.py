"""Creates and reads the secret from which ids of requests are derived."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import asyncpg
import sqlalchemy as sa

from asgi_durable.errors import StorageError
from asgi_durable.storage import tables
from asgi_durable.storage.postgres.connections.reconnecting import Connection
from asgi_durable.storage.postgres.errors import is_refused_right
from asgi_durable.storage.postgres.rows import PostgresNames
from asgi_durable.storage.records import StoredSecret
from asgi_durable.storage.rows import REQUEST_IDS, ROLLOUT_US, new_secret

__all__ = ["find_secret", "grant_secrets", "make_secret", "read_secret"]

_WRITERS = (
    "SELECT DISTINCT acl.grantee FROM pg_class AS c, aclexplode(c.relacl) AS acl "
    f"WHERE c.oid = '{tables.workflows.name}'::regclass AND acl.grantee <> c.relowner "
    "AND acl.privilege_type = 'INSERT'"
)


def grant_secrets(_dialect: sa.Dialect) -> list[str]:
    """Grant rights on the new table to the roles that may write workflows.

    A role that does not own the tables has rights on those only that existed when it got them.
    """
    grantee = "CASE writer.grantee WHEN 0 THEN 'PUBLIC' ELSE writer.grantee::regrole::text END"
    grant = f"format('GRANT SELECT, INSERT, UPDATE ON {tables.secrets.name} TO %s', {grantee})"
    loop = f"FOR writer IN {_WRITERS} LOOP EXECUTE {grant}; END LOOP"
    return [f"DO $do$ DECLARE writer record; BEGIN {loop}; END $do$"]


async def make_secret(connection: Connection, table: str, *, added_later: bool) -> None:
    """Create the secret if there is none; other processes that do so at the same time wait.

    Args:
        connection: The connection.
        table: The table's name, in a form that the connection finds.
        added_later: True if the other tables existed before the secret.
    """
    insert = f"INSERT INTO {table} VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
    await connection.fetch(insert, *new_secret(added_later=added_later))


async def find_secret(connection: Connection, names: PostgresNames, database: str) -> None:
    """Check that there is a secret; create one if its row was deleted.

    Raises:
        StorageError: The role may not use the table.
    """
    try:
        row = await _find(connection, names)
        if row is None:
            await make_secret(connection, names.secrets, added_later=False)
        elif row["added_later"]:
            await _check_former_requests(connection, names)
    except asyncpg.PostgresError as error:
        if not is_refused_right(error):
            raise
        msg = (
            f"{database}: the role may not use the table {names.secrets} ({error}): "
            "grant it SELECT, INSERT and UPDATE, as on the other tables"
        )
        raise StorageError(msg) from error


async def _check_former_requests(connection: Connection, names: PostgresNames) -> None:
    """Record it if no request is left whose id was made without the secret."""
    long_ago_us = time.time_ns() // 1000 - ROLLOUT_US
    statement = (
        f"UPDATE {names.secrets} AS s SET added_later = false "
        "WHERE name = $1 AND added_later AND created_at_us < $2 AND NOT EXISTS "
        f"(SELECT 1 FROM {names.workflows} AS w WHERE w.fingerprint IS NOT NULL "
        "AND w.created_at_us < s.created_at_us + $3)"
    )
    # Without the right to update, each request continues to cost one more look-up.
    with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
        await connection.fetch(statement, REQUEST_IDS, long_ago_us, ROLLOUT_US)


async def read_secret(connection: Connection, names: PostgresNames) -> StoredSecret:
    """See ``Secrets.read_secret``."""
    row = await _find(connection, names)
    if row is None:
        msg = f"the row of {names.secrets} has been deleted; start again to have a new one"
        raise StorageError(msg)
    return StoredSecret(value=row["value"], added_later=row["added_later"])


async def _find(connection: Connection, names: PostgresNames) -> Any:
    statement = f"SELECT value, added_later FROM {names.secrets} WHERE name = $1"
    rows = await connection.fetch(statement, REQUEST_IDS)
    return rows[0] if rows else None
