"""Creates the tables in a PostgreSQL schema, and migrates them."""

from __future__ import annotations

import logging

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

from asgi_durable.errors import StorageError
from asgi_durable.storage import tables
from asgi_durable.storage.postgres.connections.reconnecting import Connection
from asgi_durable.storage.postgres.errors import is_refused_right, is_undefined
from asgi_durable.storage.postgres.rows import FENCES, PostgresNames
from asgi_durable.storage.postgres.secret import find_secret, grant_secrets, make_secret
from asgi_durable.storage.schema import SECRETS_VERSION, Migration, pending_migrations

__all__ = ["prepare_schema"]

logger = logging.getLogger(__name__)

OLDEST_SERVER = 12
# Key of the advisory lock with which one process at a time migrates.
MIGRATION_LOCK = 0x61736769

# Has a row for every executor whose workflows are not free. Each of its transactions locks the
# row. The table is separate from `executors` as its rows must never be updated: to lock a row that
# was changed since a REPEATABLE READ transaction began fails, and leases are renewed often.
_fences = sa.Table(
    FENCES,
    sa.MetaData(),
    sa.Column("executor_id", sa.Text(collation="C"), primary_key=True),
)


def _create_fences(dialect: sa.Dialect) -> list[str]:
    return [str(CreateTable(_fences).compile(dialect=dialect))]


# Statements that a version of the shared schema needs on PostgreSQL in addition.
ADDITIONS: dict[int, Migration] = {1: _create_fences, SECRETS_VERSION: grant_secrets}


async def prepare_schema(connection: Connection, names: PostgresNames, database: str) -> None:
    """Create or migrate the tables and the secret, if this version needs that.

    Raises:
        StorageError: The server is too old, the tables were made by a newer version of the
            library, or the role lacks the rights.
    """
    server_version = connection.driver.get_server_version().major
    if server_version < OLDEST_SERVER:
        msg = f"{database}: PostgreSQL {server_version} is too old, {OLDEST_SERVER} is needed"
        raise StorageError(msg)
    (setting,) = await connection.fetch_one("SELECT current_setting('synchronous_commit')")
    if setting == "off":
        logger.warning("%s: synchronous_commit is off: a crash may lose commits", database)
    # Invariant: the version is read first, without a lock and without DDL. If nothing has to be
    # done, the role needs no more than the right to read, and nothing is waited for.
    if not pending_migrations(await _find_version(connection, names), database):
        await find_secret(connection, names, database)
        return
    try:
        await _migrate(connection, names, database)
    except asyncpg.PostgresError as error:
        if not is_refused_right(error):
            raise
        msg = (
            f"{database}: the role may not create the tables in schema {names.schema} ({error}): "
            "run `asgi-durable migrate`, or `await durable.migrate()`, once with one that may"
        )
        raise StorageError(msg) from error


async def _find_version(connection: Connection, names: PostgresNames) -> int:
    try:
        row = await connection.fetch_one(
            f"SELECT max(version) AS version FROM {names.schema_version}"
        )
    except asyncpg.PostgresError as error:
        if is_undefined(error):
            return 0
        raise
    return row["version"] or 0


async def _migrate(connection: Connection, names: PostgresNames, database: str) -> None:
    dialect = make_url("postgresql+asyncpg://").get_dialect()()
    version = tables.schema_version.name
    driver = connection.driver
    async with connection.transaction():
        # Other processes that start at the same time wait here, and see the new tables then.
        await driver.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})", timeout=300)
        if await driver.fetchval("SELECT to_regnamespace($1)", names.quoted_schema) is None:
            await driver.execute(f"CREATE SCHEMA {names.quoted_schema}")
        # Holds for this transaction. A migration's statements name no schema.
        await driver.execute(f"SET LOCAL search_path TO {names.quoted_schema}")
        await driver.execute(f"CREATE TABLE IF NOT EXISTS {version} (version integer NOT NULL)")
        found = await driver.fetchval(f"SELECT max(version) FROM {version}") or 0
        for number, migration in enumerate(pending_migrations(found, database), found + 1):
            addition = ADDITIONS.get(number)
            for statement in (*migration(dialect), *(addition(dialect) if addition else ())):
                await driver.execute(statement, timeout=3600)
            await driver.execute(f"DELETE FROM {version}")
            await driver.execute(f"INSERT INTO {version} VALUES ({number})")
        added_later = 0 < found < SECRETS_VERSION
        await make_secret(connection, tables.secrets.name, added_later=added_later)
