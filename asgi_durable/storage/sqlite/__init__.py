"""The SQLite adapter: one file, no server."""

from asgi_durable.storage.sqlite.adapter import SQLiteStorage

__all__ = ["SQLiteStorage"]
