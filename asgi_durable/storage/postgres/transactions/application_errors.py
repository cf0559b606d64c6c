"""The meaning of errors that end a transaction of the application, by their SQLSTATE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from asgi_durable.errors import StorageError, StorageUnavailableError
from asgi_durable.storage.postgres.errors import DRIVER_ERRORS, sqlstate_of
from asgi_durable.storage.transaction_port import GivenUpError

__all__ = [
    "application_error",
    "drop_outdated_connections",
    "is_outdated",
    "library_statements",
    "our_own_commit",
    "unavailable_error",
]

# The server, or the way to it: no resources, a lost connection, a stop, a start, a standby.
_OUTAGE_CLASSES = frozenset({"08", "53", "58"})
_OUTAGES = frozenset({"25006", "40003", "57P01", "57P02", "57P03", "57P04", "57P05"})
# Rolled back in favour of another transaction.
_CONFLICT_CLASS = "40"
_IDLE_IN_TRANSACTION = "25P03"
# Limits that the application has set, or a cancellation on request.
_LIMITS = frozenset({"55P03", "57014", _IDLE_IN_TRANSACTION, "25P04"})
# The name of the server's function: messages are translated, and psycopg has no class for it.
_REPLANNING = "RevalidateCachedQuery"
_INTERNAL, _LOOKUP_FAILED = "XX000", "cache lookup failed for"
_OUTDATED = (
    asyncpg.exceptions.InvalidCachedStatementError,
    asyncpg.exceptions.OutdatedSchemaCacheError,
)
_LONGEST_CHAIN = 6


def application_error(
    error: Exception,
    database: str,
    *,
    is_lost: bool,
    farewell: asyncpg.PostgresError | None = None,
) -> Exception | None:
    """Return the error to raise after an error that ended a transaction of the application.

    Args:
        error: The error of the driver, of SQLAlchemy or of the application.
        database: The name of the database, for the message.
        is_lost: True if the connection is closed.
        farewell: The error with which the server closed it, if the driver does not raise that.

    Returns:
        ``StorageUnavailableError`` for an outage, ``GivenUpError`` if the transaction must run
        again. ``None`` if the error is the transaction's own and passes: a mistake in a
        statement, a broken constraint, a limit of the application, and every error that is not
        the database's.
    """
    if isinstance(error, StorageError):
        return None
    found = _database_errors(error)
    # The session raises its own error where the application has caught the first one.
    is_ended = is_lost and (bool(found) or isinstance(error, PendingRollbackError))
    if is_ended and farewell is not None:
        found = [*found, farewell]
    codes = {sqlstate_of(one) for one in found}
    if codes & _LIMITS:
        return _named(error, found)
    conflicts = any(code.startswith(_CONFLICT_CLASS) for code in codes - _OUTAGES)
    if conflicts or is_outdated(error):
        return GivenUpError(f"{database}: {_text(error)}")
    is_outage = any(code in _OUTAGES or code[:2] in _OUTAGE_CLASSES for code in codes)
    is_loss = is_ended or (is_lost and isinstance(error, OSError))
    return unavailable_error(error, database) if is_outage or is_loss else None


def _named(error: Exception, found: list[BaseException]) -> DBAPIError | None:
    """Return an error that names the limit that was hit, ``None`` if this one does."""
    limit = next(one for one in found if sqlstate_of(one) in _LIMITS)
    names_it = sqlstate_of(getattr(error, "orig", error)) in _LIMITS
    return None if names_it else DBAPIError(getattr(error, "statement", None), None, limit)


def unavailable_error(error: Exception, database: str) -> StorageUnavailableError:
    """Return the library's error for an outage."""
    return StorageUnavailableError(f"{database}: {_text(error)}")


@contextmanager
def library_statements(database: str) -> Iterator[None]:
    """Treat a limit as an outage if it has ended a statement of the library.

    The application's limits hold for the library's statements in its transaction as well. A slow
    statement of the library says nothing about the application's work, which is done again.

    Raises:
        StorageUnavailableError: A limit has ended a statement.
    """
    try:
        yield
    except Exception as error:
        if {sqlstate_of(one) for one in _database_errors(error)} & _LIMITS:
            raise unavailable_error(error, database) from error
        raise


@contextmanager
def our_own_commit(database: str) -> Iterator[None]:
    """Treat a connection that is lost at a COMMIT as an outage, whatever the reason.

    The library has set a limit for the pause between the record and the COMMIT. Other errors at a
    COMMIT may be the application's, as its constraints are checked then.

    Raises:
        StorageUnavailableError: The connection is lost.
    """
    try:
        yield
    except DBAPIError as error:
        codes = {sqlstate_of(one) for one in _database_errors(error)}
        if error.connection_invalidated or _IDLE_IN_TRANSACTION in codes:
            raise unavailable_error(error, database) from error
        raise


def is_outdated(error: BaseException) -> bool:
    """Tell whether the cache of a connection is older than a migration of its tables."""
    for one in _database_errors(error):
        diagnosis: Any = getattr(one, "diag", None)
        if isinstance(one, _OUTDATED) or getattr(diagnosis, "source_function", "") == _REPLANNING:
            return True
        # The cache refers to a type or a function that was dropped and created again.
        if sqlstate_of(one) == _INTERNAL and _LOOKUP_FAILED in str(one):
            return True
    return False


def drop_outdated_connections(context: Any) -> None:
    """Replace all connections of a pool before their next use, once one of them is outdated.

    Args:
        context: The argument of SQLAlchemy's event ``handle_error``.
    """
    if is_outdated(context.original_exception):
        context.is_disconnect = True


def _database_errors(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, as far as they belong to a driver or to SQLAlchemy.

    An exception of its own that the application raised from one is the application's.
    """
    one: BaseException | None = error if _is_of_database(error) else error.__cause__
    if isinstance(one, DBAPIError) and one is not error:
        return []
    found: list[BaseException] = []
    while one is not None and len(found) < _LONGEST_CHAIN and _is_of_database(one):
        found.append(one)
        if isinstance(one, DBAPIError) and one.orig is not None:
            one = one.orig
            found.append(one)
        one = one.__cause__
    return found


def _is_of_database(error: BaseException) -> bool:
    # Those of psycopg have a `sqlstate` as well, ``None`` for a connection that is lost.
    return isinstance(error, (DBAPIError, *DRIVER_ERRORS)) or hasattr(error, "sqlstate")


def _text(error: Exception) -> str:
    # Without the lines of details and hints, which may show rows.
    return str(getattr(error, "orig", None) or error).partition("\n")[0]
