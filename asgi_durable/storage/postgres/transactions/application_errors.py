"""What an error that ends a transaction of the application means, by its SQLSTATE."""

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
# Rolled back for the sake of another transaction.
_CONFLICT_CLASS = "40"
_IDLE_IN_TRANSACTION = "25P03"
# Limits that the application has set, or a cancellation that somebody has asked for.
_LIMITS = frozenset({"55P03", "57014", _IDLE_IN_TRANSACTION, "25P04"})
# Messages are translated, and psycopg has no class for it: the name of the server's function.
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
    """Return what to raise for what ended a transaction of the application.

    Args:
        error: What was raised there, by the driver, by SQLAlchemy or by the application.
        database: Its name, for the message.
        is_lost: True if the connection is closed.
        farewell: With what error the server has closed it, where the driver does not raise that.

    Returns:
        ``StorageUnavailableError`` for an outage, ``GivenUpError`` if the transaction is to be run
        again. ``None`` if the error is the transaction's own and passes: a mistake in a
        statement, a constraint that it broke, a limit of the application, and all that is no
        error of the database.
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
    """Return an error that says which limit was hit, ``None`` if this one does."""
    limit = next(one for one in found if sqlstate_of(one) in _LIMITS)
    names_it = sqlstate_of(getattr(error, "orig", error)) in _LIMITS
    return None if names_it else DBAPIError(getattr(error, "statement", None), None, limit)


def unavailable_error(error: Exception, database: str) -> StorageUnavailableError:
    """Return the library's error for an outage."""
    return StorageUnavailableError(f"{database}: {_text(error)}")


@contextmanager
def library_statements(database: str) -> Iterator[None]:
    """Take a limit for an outage where it has ended a statement of ours.

    The application's limits hold for those in its transaction as well. That one took too long
    says nothing about the application's work, which is done again.

    Raises:
        StorageUnavailableError: A limit has ended one.
    """
    try:
        yield
    except Exception as error:
        if {sqlstate_of(one) for one in _database_errors(error)} & _LIMITS:
            raise unavailable_error(error, database) from error
        raise


@contextmanager
def our_own_commit(database: str) -> Iterator[None]:
    """Take a connection that is lost at a COMMIT for an outage, whatever it is lost for.

    The pause between the record and this has a limit of our own. What else ends a COMMIT may be
    the application's: its constraints are checked then.

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
    """Tell whether what a connection has cached is of tables as they were before a migration."""
    for one in _database_errors(error):
        diagnosis: Any = getattr(one, "diag", None)
        if isinstance(one, _OUTDATED) or getattr(diagnosis, "source_function", "") == _REPLANNING:
            return True
        # It refers to a type or a function that was dropped and made again.
        if sqlstate_of(one) == _INTERNAL and _LOOKUP_FAILED in str(one):
            return True
    return False


def drop_outdated_connections(context: Any) -> None:
    """Replace all connections of a pool before their next use, once one of them is outdated.

    Args:
        context: Of SQLAlchemy's event ``handle_error``.
    """
    if is_outdated(context.original_exception):
        context.is_disconnect = True


def _database_errors(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, as far as they are a driver's or SQLAlchemy's for it.

    What the application has made of one, an exception of its own, is the application's.
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
