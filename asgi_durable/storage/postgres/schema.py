"""Creating the tables in a PostgreSQL schema, and bringing them up to date."""

from __future__ import annotations

import logging

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

from asgi_durable.errors import StorageError
from asgi_durable.storage import tables
from asgi_durable.storage.postgres.connections.reconnecting import Wire
from asgi_durable.storage.postgres.errors import is_refused_right, is_undefined
from asgi_durable.storage.postgres.rows import FENCES, PostgresNames
from asgi_durable.storage.postgres.secret import find_secret, grant_secrets, make_secret
from asgi_durable.storage.schema import SECRETS_VERSION, Migration, pending_migrations

__all__ = ["prepare_schema"]

logger = logging.getLogger(__name__)

OLDEST_SERVER = 12
# Of the advisory lock under which one process at a time migrates.
MIGRATION_LOCK = 0x61736769

# A row for every executor whose workflows are not free, which each of its transactions locks.
# It is apart from `executors` as it must never be updated: locking a row that was changed
# since a REPEATABLE READ transaction began fails, and leases are renewed all the time.
_fences = sa.Table(
    FENCES,
    sa.MetaData(),
    sa.Column("executor_id", sa.Text(collation="C"), primary_key=True),
)


def _create_fences(dialect: sa.Dialect) -> list[str]:
    return [str(CreateTable(_fences).compile(dialect=dialect))]


# Statements that a version of the shared schema needs on PostgreSQL alone.
ADDITIONS: dict[int, Migration] = {1: _create_fences, SECRETS_VERSION: grant_secrets}


async def prepare_schema(wire: Wire, names: PostgresNames, database: str) -> None:
    """Create or migrate the tables, if they are not as this version needs them, and the secret.

    Raises:
        StorageError: The server is too old, or a newer version of the library was here, or
            the role may not do it.
    """
    server_version = wire.connection.get_server_version().major
    if server_version < OLDEST_SERVER:
        msg = f"{database}: PostgreSQL {server_version} is too old, {OLDEST_SERVER} is needed"
        raise StorageError(msg)
    (setting,) = await wire.fetch_one("SELECT current_setting('synchronous_commit')")
    if setting == "off":
        logger.warning("%s: synchronous_commit is off: a crash may lose commits", database)
    # Invariant: looked at without a lock and without DDL first. Where nothing is to be done
    # that needs no rights but those to read, and waits for nobody.
    if not pending_migrations(await _find_version(wire, names), database):
        await find_secret(wire, names, database)
        return
    try:
        await _migrate(wire, names, database)
    except asyncpg.PostgresError as error:
        if not is_refused_right(error):
            raise
        msg = (
            f"{database}: the role may not create the tables in schema {names.schema} ({error}): "
            "run `asgi-durable migrate`, or `await durable.migrate()`, once with one that may"
        )
        raise StorageError(msg) from error


async def _find_version(wire: Wire, names: PostgresNames) -> int:
    try:
        row = await wire.fetch_one(f"SELECT max(version) AS version FROM {names.schema_version}")
    except asyncpg.PostgresError as error:
        if is_undefined(error):
            return 0
        raise
    return row["version"] or 0


async def _migrate(wire: Wire, names: PostgresNames, database: str) -> None:
    dialect = make_url("postgresql+asyncpg://").get_dialect()()
    version = tables.schema_version.name
    connection = wire.connection
    async with wire.transaction():
        # Others that start at the same time wait here, until they see all that was done.
        await connection.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})", timeout=300)
        if await connection.fetchval("SELECT to_regnamespace($1)", names.quoted_schema) is None:
            await connection.execute(f"CREATE SCHEMA {names.quoted_schema}")
        # Of this transaction only: a migration's statements name no schema.
        await connection.execute(f"SET LOCAL search_path TO {names.quoted_schema}")
        await connection.execute(f"CREATE TABLE IF NOT EXISTS {version} (version integer NOT NULL)")
        found = await connection.fetchval(f"SELECT max(version) FROM {version}") or 0
        for number, migration in enumerate(pending_migrations(found, database), found + 1):
            addition = ADDITIONS.get(number)
            for statement in (*migration(dialect), *(addition(dialect) if addition else ())):
                await connection.execute(statement, timeout=3600)
            await connection.execute(f"DELETE FROM {version}")
            await connection.execute(f"INSERT INTO {version} VALUES ({number})")
        added_later = 0 < found < SECRETS_VERSION
        await make_secret(wire, tables.secrets.name, added_later=added_later)
