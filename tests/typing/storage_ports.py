"""Read by the type checker, never run: each storage adapter fits its port."""

from __future__ import annotations

from asgi_durable.storage.application import SQLApplicationDatabase
from asgi_durable.storage.postgres import PostgresStorage
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.sqlite import SQLiteStorage
from asgi_durable.storage.transaction_port import ApplicationDatabase


def each_adapter_is_a_storage(sqlite: SQLiteStorage, postgres: PostgresStorage) -> list[Storage]:
    """Fail type checking when a signature drifts, which comparing names cannot see."""
    return [sqlite, postgres]


def sqlalchemy_reaches_the_applications_own(
    database: SQLApplicationDatabase,
) -> ApplicationDatabase:
    """As above."""
    return database
