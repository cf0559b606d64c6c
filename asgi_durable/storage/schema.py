"""Migrations: the statements that bring a database from one schema version to the next.

A released migration is never changed; a new schema version appends one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Dialect, MetaData, Table, Text
from sqlalchemy.schema import CreateIndex, CreateTable

from asgi_durable.errors import StorageError
from asgi_durable.storage.tables import metadata, schema_version, secrets

__all__ = ["MIGRATIONS", "SECRETS_VERSION", "Migration", "pending_migrations"]

Migration = Callable[[Dialect], Sequence[str]]


def _create_tables(dialect: Dialect) -> Sequence[str]:
    later = (schema_version, secrets)
    return _creating([table for table in metadata.sorted_tables if table not in later], dialect)


def _create_secrets(dialect: Dialect) -> Sequence[str]:
    return _creating([secrets], dialect)


def _creating(tables: Sequence[Table], dialect: Dialect) -> Sequence[str]:
    if dialect.name == "postgresql":
        tables = _in_code_point_order(tables)
    indexes = [index for table in tables for index in sorted(table.indexes, key=str)]
    return [
        *(str(CreateTable(table).compile(dialect=dialect)) for table in tables),
        *(str(CreateIndex(index).compile(dialect=dialect)) for index in indexes),
    ]


def _in_code_point_order(tables: Sequence[Table]) -> list[Table]:
    """Return copies of tables whose text sorts as it does in SQLite and Python.

    Such text also compares faster, and an update of the system's locales cannot break its indexes.
    """
    copies = MetaData(naming_convention=metadata.naming_convention)
    copied = [table.to_metadata(copies) for table in tables]
    for column in (column for table in copied for column in table.columns):
        if isinstance(column.type, Text):
            column.type = Text(collation="C")
    return copied


MIGRATIONS: tuple[Migration, ...] = (_create_tables, _create_secrets)
# The first version with the table of secrets.
SECRETS_VERSION = 2


def pending_migrations(
    found_version: int, database: str, migrations: Sequence[Migration] = MIGRATIONS
) -> Sequence[Migration]:
    """Return the migrations that a database needs, in order.

    Args:
        found_version: The schema version of the database, 0 if it has none of our tables.
        database: The name of the database, for the message.
        migrations: All migrations that this version of the library knows.

    Raises:
        StorageError: A newer version of the library has written the database.
    """
    if found_version > len(migrations):
        msg = (
            f"{database} was written by a newer version of asgi-durable (schema {found_version}; "
            f"this one knows up to {len(migrations)}): upgrade the library"
        )
        raise StorageError(msg)
    return migrations[found_version:]
