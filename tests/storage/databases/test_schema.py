"""Schema versions: migrations run in order, and unknown versions are refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from asgi_durable import StorageError
from asgi_durable.storage.schema import MIGRATIONS, pending_migrations
from asgi_durable.storage.sqlite import schema
from asgi_durable.storage.sqlite.file import SQLiteFile


def add_column(_: object) -> list[str]:
    return ["ALTER TABLE asgi_durable_steps ADD COLUMN note TEXT"]


def fail_half_way(_: object) -> list[str]:
    return ["ALTER TABLE asgi_durable_steps ADD COLUMN note TEXT", "ALTER TABLE nothing ADD x"]


def versions_and_columns(path: Path) -> tuple[list[int], set[str]]:
    connection = sqlite3.connect(path)
    versions = [v for (v,) in connection.execute("SELECT version FROM asgi_durable_schema")]
    columns = {row[1] for row in connection.execute("PRAGMA table_info(asgi_durable_steps)")}
    connection.close()
    return versions, columns


def migrate(path: Path) -> None:
    connection = SQLiteFile(path=path).connect()
    try:
        schema.migrate(connection, str(path))
    finally:
        connection.close()


def with_migrations(monkeypatch: pytest.MonkeyPatch, *more) -> None:
    known = (*MIGRATIONS, *more)
    monkeypatch.setattr(
        schema,
        "pending_migrations",
        lambda found, name: pending_migrations(found, name, known),
    )


def test_an_older_database_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    migrate(path)
    assert versions_and_columns(path)[0] == [len(MIGRATIONS)]

    with_migrations(monkeypatch, add_column)
    migrate(path)
    migrate(path)

    versions, columns = versions_and_columns(path)
    assert versions == [len(MIGRATIONS) + 1]
    assert "note" in columns


def test_a_migration_that_fails_leaves_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    migrate(path)

    with_migrations(monkeypatch, fail_half_way)
    with pytest.raises(sqlite3.OperationalError):
        migrate(path)

    versions, columns = versions_and_columns(path)
    assert versions == [len(MIGRATIONS)]
    assert "note" not in columns


def test_a_version_that_is_not_known_is_refused() -> None:
    with pytest.raises(StorageError, match="orders"):
        pending_migrations(len(MIGRATIONS) + 1, "orders.db")
