"""What an error of SQLite means: come back later, or never."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from asgi_durable.errors import StorageError, StorageUnavailableError

__all__ = ["TranslatingErrors", "naming_errors", "storage_error"]

# Conditions that pass: a lock, a full disk, a disk that stumbled.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_INTERRUPT,
    }
)
_LASTING = frozenset(
    {
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
    }
)


def storage_error(error: BaseException, database: str) -> StorageError | None:
    """Return the library's error for a failure of the database, ``None`` for any other.

    A mistake in a statement, or a constraint that it breaks, is no failure of the database.
    """
    # The low byte is the primary code; what lies above says more of the same condition.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    message = f"{database}: {error}"
    if code in _PASSING:
        return StorageUnavailableError(message)
    if code in _LASTING:
        return StorageError(message)
    return None


@contextmanager
def naming_errors(database: str) -> Iterator[None]:
    """Turn every error of the driver into a ``StorageError`` that names the database."""
    try:
        yield
    except sqlite3.Error as error:
        raise storage_error(error, database) or StorageError(f"{database}: {error}") from error


class TranslatingErrors:
    """Tell failures of the database from mistakes of the application, which pass.

    Every statement is in one: a generator would take four times as long.
    """

    __slots__ = ("_database",)

    def __init__(self, database: str) -> None:
        self._database = database

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raise a failure of the database as what it is."""
        if isinstance(error, (DBAPIError, sqlite3.Error)):
            driver_error = error.orig if isinstance(error, DBAPIError) else error
            failure = storage_error(driver_error or error, self._database)
            if failure is not None:
                raise failure from error
