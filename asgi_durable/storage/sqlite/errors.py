"""What an error of SQLite means: come back later, or never."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from asgi_durable.errors import StorageError, StorageUnavailableError

__all__ = ["TranslatingErrors", "application_error", "naming_errors", "storage_error"]

Meaning = Callable[[BaseException, str], StorageError | None]

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


# Of a statement of the application's: it has interrupted it, or forbidden it, itself; or one
# connection is in its own way, as with a table that is dropped while rows of it are read.
_OF_APPLICATION = frozenset(
    {sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PERM, sqlite3.SQLITE_LOCKED}
)


def application_error(error: BaseException, database: str) -> StorageError | None:
    """Return the same for a failure in a transaction of the application."""
    code = getattr(error, "sqlite_errorcode", 0)
    # An index of the application's own, for full text say, that does not fit its table.
    is_own = code & 0xFF in _OF_APPLICATION or code == sqlite3.SQLITE_CORRUPT_VTAB
    return None if is_own else storage_error(error, database)


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

    Args:
        database: Its name, for the messages.
        meaning: What an error of the driver means; by default one of our own statements.
    """

    __slots__ = ("_database", "_meaning")

    def __init__(self, database: str, meaning: Meaning = storage_error) -> None:
        self._database = database
        self._meaning = meaning

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raise a failure of the database as what it is."""
        if isinstance(error, (DBAPIError, sqlite3.Error)):
            driver_error = error.orig if isinstance(error, DBAPIError) else error
            failure = self._meaning(driver_error or error, self._database)
            if failure is not None:
                raise failure from error
