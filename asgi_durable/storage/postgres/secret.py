"""Making and reading the secret of the requests' ids in a PostgreSQL database."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import asyncpg
import sqlalchemy as sa

from asgi_durable.errors import StorageError
from asgi_durable.storage import tables
from asgi_durable.storage.postgres.connections.reconnecting import Wire
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
    """Grant the new table to the roles that may write workflows.

    A role that may only use the tables has rights on the tables of its time alone.
    """
    grantee = "CASE writer.grantee WHEN 0 THEN 'PUBLIC' ELSE writer.grantee::regrole::text END"
    grant = f"format('GRANT SELECT, INSERT, UPDATE ON {tables.secrets.name} TO %s', {grantee})"
    loop = f"FOR writer IN {_WRITERS} LOOP EXECUTE {grant}; END LOOP"
    return [f"DO $do$ DECLARE writer record; BEGIN {loop}; END $do$"]


async def make_secret(wire: Wire, table: str, *, added_later: bool) -> None:
    """Make the secret if there is none; others that do so at the same time wait.

    Args:
        wire: The connection.
        table: Its name, as the connection finds it.
        added_later: True if the database had our tables before it had a secret.
    """
    insert = f"INSERT INTO {table} VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
    await wire.fetch(insert, *new_secret(added_later=added_later))


async def find_secret(wire: Wire, names: PostgresNames, database: str) -> None:
    """Look for the secret; make one where its row was deleted.

    Raises:
        StorageError: The role may not read it.
    """
    try:
        row = await _find(wire, names)
        if row is None:
            await make_secret(wire, names.secrets, added_later=False)
        elif row["added_later"]:
            await _look_for_former_requests(wire, names)
    except asyncpg.PostgresError as error:
        if not is_refused_right(error):
            raise
        msg = (
            f"{database}: the role may not use the table {names.secrets} ({error}): "
            "grant it SELECT, INSERT and UPDATE, as on the other tables"
        )
        raise StorageError(msg) from error


async def _look_for_former_requests(wire: Wire, names: PostgresNames) -> None:
    """Take note if no request is left whose id was made without the secret."""
    long_ago_us = time.time_ns() // 1000 - ROLLOUT_US
    statement = (
        f"UPDATE {names.secrets} AS s SET added_later = false "
        "WHERE name = $1 AND added_later AND created_at_us < $2 AND NOT EXISTS "
        f"(SELECT 1 FROM {names.workflows} AS w WHERE w.fingerprint IS NOT NULL "
        "AND w.created_at_us < s.created_at_us + $3)"
    )
    # Without the right it stays as it is: one more look-up for each request, and no harm.
    with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
        await wire.fetch(statement, REQUEST_IDS, long_ago_us, ROLLOUT_US)


async def read_secret(wire: Wire, names: PostgresNames) -> StoredSecret:
    """See ``Secrets.read_secret``."""
    row = await _find(wire, names)
    if row is None:
        msg = f"the row of {names.secrets} has been deleted; start again to have a new one"
        raise StorageError(msg)
    return StoredSecret(value=row["value"], added_later=row["added_later"])


async def _find(wire: Wire, names: PostgresNames) -> Any:
    statement = f"SELECT value, added_later FROM {names.secrets} WHERE name = $1"
    rows = await wire.fetch(statement, REQUEST_IDS)
    return rows[0] if rows else None
