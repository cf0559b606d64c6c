"""Read by the type checker, never run: each storage adapter fits its port."""

from __future__ import annotations

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.sqlite import SQLiteStorage


def each_adapter_is_a_storage(sqlite: SQLiteStorage) -> list[Storage]:
    """Fail type checking when a signature drifts, which comparing names cannot see."""
    return [sqlite]
