"""Classifies errors that end a transaction of the application, by their SQLSTATE."""

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

# The server cannot be used: no resources, a lost connection, a stop, a start, a standby.
_OUTAGE_CLASSES = frozenset({"08", "53", "58"})
_OUTAGES = frozenset({"25006", "40003", "57P01", "57P02", "57P03", "57P04", "57P05"})
# Serialization failures and deadlocks: the server rolled this transaction back for another one.
_CONFLICT_CLASS = "40"
_IDLE_IN_TRANSACTION = "25P03"
# Limits that the application has set, and cancellations by an operator.
_LIMITS = frozenset({"55P03", "57014", _IDLE_IN_TRANSACTION, "25P04"})
# "cached plan must not change result type". psycopg has no class for it, and the text is
# translated, so the server's function that raises it is compared.
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
    closing_error: asyncpg.PostgresError | None = None,
) -> Exception | None:
    """Return the error to raise instead of one that ended a transaction of the application.

    Args:
        error: The error that the driver, SQLAlchemy or the application raised.
        database: The database's name, for the message.
        is_lost: True if the connection is closed.
        closing_error: The error with which the server closed the connection, if the driver does
            not raise it.

    Returns:
        ``StorageUnavailableError`` for an outage, ``GivenUpError`` if the transaction should be
        run again. ``None`` if *error* belongs to the application and is raised as it is: a
        mistake in a statement, a broken constraint, a limit of the application, and any error
        that does not come from the database.
    """
    if isinstance(error, StorageError):
        return None
    found = _database_errors(error)
    # If the application has caught the driver's error, the session raises one of its own.
    is_ended = is_lost and (bool(found) or isinstance(error, PendingRollbackError))
    if is_ended and closing_error is not None:
        found = [*found, closing_error]
    codes = {sqlstate_of(one) for one in found}
    if codes & _LIMITS:
        return _limit_error(error, found)
    conflicts = any(code.startswith(_CONFLICT_CLASS) for code in codes - _OUTAGES)
    if conflicts or is_outdated(error):
        return GivenUpError(f"{database}: {_text(error)}")
    is_outage = any(code in _OUTAGES or code[:2] in _OUTAGE_CLASSES for code in codes)
    is_loss = is_ended or (is_lost and isinstance(error, OSError))
    return unavailable_error(error, database) if is_outage or is_loss else None


def _limit_error(error: Exception, found: list[BaseException]) -> DBAPIError | None:
    """Return an error that names the limit that was hit, ``None`` if *error* names it."""
    limit = next(one for one in found if sqlstate_of(one) in _LIMITS)
    is_named = sqlstate_of(getattr(error, "orig", error)) in _LIMITS
    return None if is_named else DBAPIError(getattr(error, "statement", None), None, limit)


def unavailable_error(error: Exception, database: str) -> StorageUnavailableError:
    """Return the library's error for an outage."""
    return StorageUnavailableError(f"{database}: {_text(error)}")


@contextmanager
def library_statements(database: str) -> Iterator[None]:
    """Treat a limit as an outage if it ends one of the library's own statements.

    The application's limits hold for all statements in its transaction. If one of ours takes too
    long, the application's work is not to blame, and the transaction is run again.

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
    """Treat the loss of a connection at a COMMIT as an outage, whatever its cause.

    The idle time before a COMMIT has a limit of the library's own. Other errors of a COMMIT may
    belong to the application, as deferred constraints are checked then.

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
    """Tell whether a connection has cached plans or types of tables from before a migration."""
    for one in _database_errors(error):
        diagnosis: Any = getattr(one, "diag", None)
        if isinstance(one, _OUTDATED) or getattr(diagnosis, "source_function", "") == _REPLANNING:
            return True
        # A cached plan refers to a type or a function that was dropped and created again.
        if sqlstate_of(one) == _INTERNAL and _LOOKUP_FAILED in str(one):
            return True
    return False


def drop_outdated_connections(context: Any) -> None:
    """Let a pool replace all of its connections if an error shows that one is outdated.

    Args:
        context: The argument of SQLAlchemy's event ``handle_error``.
    """
    if is_outdated(context.original_exception):
        context.is_disconnect = True


def _database_errors(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, as far as the driver or SQLAlchemy raised them.

    An exception that the application raised from one of SQLAlchemy's is the application's.
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
    # All errors of psycopg have a `sqlstate`; it is ``None`` for a lost connection.
    return isinstance(error, (DBAPIError, *DRIVER_ERRORS)) or hasattr(error, "sqlstate")


def _text(error: Exception) -> str:
    # Details and hints, on the lines below the first, may show rows.
    return str(getattr(error, "orig", None) or error).partition("\n")[0]
