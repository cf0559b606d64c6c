"""The connections of threads to a SQLite file, through SQLAlchemy and the standard library."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import sqlalchemy as sa

from asgi_durable.storage.application import checked_isolation_level
from asgi_durable.storage.sqlite.errors import TranslatingErrors, application_error
from asgi_durable.storage.sqlite.file import SQLiteFile
from asgi_durable.storage.sqlite.transactions.write_turn import WriteTurn

__all__ = ["SQLiteBlockingSessions"]


class SQLiteBlockingSessions:
    """Opens connections with a write transaction, one at a time.

    Args:
        file: The database.
        turn: When this process writes.
    """

    def __init__(self, file: SQLiteFile, turn: WriteTurn) -> None:
        self._file = file
        self._turn = turn
        # Nothing is opened before it is used.
        self._engine = sa.create_engine("sqlite://", creator=file.connect, poolclass=sa.QueuePool)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._engine.dispose()

    @contextmanager
    def begin(self, isolation_level: str | None) -> Iterator[sa.Connection]:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        # SQLite is serializable whatever is asked for.
        checked_isolation_level(isolation_level)
        naming = TranslatingErrors(str(self._file.path), application_error)
        with self._turn, naming, self._engine.connect() as connection:
            with self.our_own_statements():
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def our_own_statements(self) -> AbstractContextManager[None]:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        return TranslatingErrors(str(self._file.path))

    def commit(self, connection: sa.Connection) -> None:
        """See :class:`asgi_durable.storage.application.BlockingSessions`."""
        connection.commit()

    def is_in_transaction(self, connection: sa.Connection) -> bool:
        """Tell whether the transaction has not been ended behind the connection's back."""
        driver = cast("sqlite3.Connection | None", connection.connection.driver_connection)
        return driver is not None and driver.in_transaction
