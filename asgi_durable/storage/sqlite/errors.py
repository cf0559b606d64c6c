"""Translate errors of SQLite: into those that may pass, and those that will not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from asgi_durable.errors import StorageError, StorageUnavailableError

__all__ = ["TranslatingErrors", "application_error", "naming_errors", "storage_error"]

Translate = Callable[[BaseException, str], StorageError | None]

# Conditions that may pass: a lock, a full disk, a failed read or write.
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

    An invalid statement, or one that breaks a constraint, is no failure of the database.
    """
    # The low byte is the primary code; the bits above it name a special case of it.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    message = f"{database}: {error}"
    if code in _PASSING:
        return StorageUnavailableError(message)
    if code in _LASTING:
        return StorageError(message)
    return None


# Errors that the application causes itself by a statement of its own: it has interrupted it or
# forbidden it, or one connection blocks itself, for example by dropping a table while it reads it.
_OF_APPLICATION = frozenset(
    {sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PERM, sqlite3.SQLITE_LOCKED}
)


def application_error(error: BaseException, database: str) -> StorageError | None:
    """Return what :func:`storage_error` does, for an error in a transaction of the application."""
    code = getattr(error, "sqlite_errorcode", 0)
    # CORRUPT_VTAB: an index of the application, for example for full text, does not fit its table.
    is_own = code & 0xFF in _OF_APPLICATION or code == sqlite3.SQLITE_CORRUPT_VTAB
    return None if is_own else storage_error(error, database)


@contextmanager
def naming_errors(database: str) -> Iterator[None]:
    """Raise every error of the driver as a ``StorageError`` that names the database."""
    try:
        yield
    except sqlite3.Error as error:
        raise storage_error(error, database) or StorageError(f"{database}: {error}") from error


class TranslatingErrors:
    """Raises failures of the database as ``StorageError``; other errors pass unchanged.

    It is entered for every statement: a generator would take four times as long.

    Args:
        database: The name of the database, for messages.
        translate: Returns the library's error for a driver's error, or ``None``; by default for
            statements of the library.
    """

    __slots__ = ("_database", "_translate")

    def __init__(self, database: str, translate: Translate = storage_error) -> None:
        self._database = database
        self._translate = translate

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raise the library's error for a failure of the database."""
        if isinstance(error, (DBAPIError, sqlite3.Error)):
            driver_error = error.orig if isinstance(error, DBAPIError) else error
            failure = self._translate(driver_error or error, self._database)
            if failure is not None:
                raise failure from error
