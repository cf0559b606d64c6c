"""The PostgreSQL adapter: any number of processes and machines on one database."""

from asgi_durable.storage.postgres.adapter import PostgresStorage

__all__ = ["PostgresStorage"]
