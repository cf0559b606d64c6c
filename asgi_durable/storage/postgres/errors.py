"""Classifies errors of PostgreSQL and its driver: an outage, a bad row, or a lasting error."""

from __future__ import annotations

import ssl

import asyncpg

from asgi_durable.errors import StorageError, StorageUnavailableError

__all__ = [
    "DRIVER_ERRORS",
    "ChangedMeanwhileError",
    "is_bad_row",
    "is_harmless",
    "is_refused_right",
    "is_undefined",
    "sqlstate_of",
    "storage_error",
]

# Temporary conditions: a lost connection, no resources, a server that stops or starts.
_TEMPORARY_CLASSES = frozenset({"08", "53", "57", "58"})
_TEMPORARY = frozenset(
    {
        "25006",  # read-only: the server is not, or no longer, the primary
        "25P03",  # a transaction was idle for too long
        "25P04",  # a transaction took too long
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",  # a lock was not available
    }
)
# Errors caused by a row that the database cannot hold.
_BAD_ROW_CLASSES = frozenset({"22", "23", "54"})
_TOO_LARGE = "invalid memory alloc request size"
# A pooler sent a prepared statement to another server connection.
_PREPARED_ELSEWHERE = frozenset({"26000", "42P05"})
# Lasting errors that a pooler sends with the code of a lost connection.
_POOLER_REFUSALS = ("no such user", "no such database", "unsupported startup parameter")
# Parts of OpenSSL that read certificates and keys from files, not from the network.
_FILE_LIBRARIES = frozenset({"PEM", "X509", "ASN1"})
_UNDEFINED = frozenset({"42P01", "3F000"})
_REFUSED_RIGHT = "42501"


class ChangedMeanwhileError(Exception):
    """Another process changed a row that was read before; nothing was written."""


# Base classes of the driver's errors; the first is for errors that the server sends.
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def sqlstate_of(error: BaseException | None) -> str:
    """Return the SQLSTATE of an error that the server sent, ``""`` for any other error."""
    return getattr(error, "sqlstate", None) or ""


def is_bad_row(error: BaseException) -> bool:
    """Tell whether the cause is a row that the driver cannot encode or the server cannot hold."""
    code = sqlstate_of(error)
    if code:
        return code[:2] in _BAD_ROW_CLASSES or _TOO_LARGE in str(error)
    # The driver's own DataError is a ValueError, and so are the errors of str.encode().
    return isinstance(error, (ValueError, OverflowError))


def is_harmless(error: BaseException) -> bool:
    """Tell whether the connection can be used after this error as before."""
    code = sqlstate_of(error)
    is_temporary = code[:2] in _TEMPORARY_CLASSES or code in {"25006", "25P03", "25P04"}
    return is_bad_row(error) or (bool(code) and not is_temporary)


def is_undefined(error: BaseException) -> bool:
    """Tell whether a table or its schema does not exist."""
    return sqlstate_of(error) in _UNDEFINED


def is_refused_right(error: BaseException) -> bool:
    """Tell whether the role lacks a right."""
    return sqlstate_of(error) == _REFUSED_RIGHT


def storage_error(error: BaseException, database: str) -> StorageError | None:
    """Return the library's error for a failure of one of its own statements.

    Args:
        error: The error that the driver raised.
        database: The database's name, for the message.

    Returns:
        ``None`` for a bad row, and for an error that does not come from the database.
    """
    if isinstance(error, StorageError) or is_bad_row(error):
        return None
    # Details and hints, on the lines below the first, may show rows.
    message = f"{database}: {str(error).partition(chr(10))[0] or type(error).__name__}"
    if _is_temporary(error) and not str(error).startswith(_POOLER_REFUSALS):
        return StorageUnavailableError(message)
    if sqlstate_of(error) in _PREPARED_ELSEWHERE:
        return StorageError(
            f"{message} (behind a pooler in transaction mode add ?prepared_statements=false)"
        )
    return StorageError(message) if isinstance(error, DRIVER_ERRORS) else None


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    if isinstance(error, ssl.SSLError) and error.library in _FILE_LIBRARIES:
        return False
    # A prepared statement whose tables were changed is prepared again at its next use.
    outdated = asyncpg.exceptions.InvalidCachedStatementError
    lost = (OSError, EOFError, asyncpg.InterfaceError, asyncpg.InternalClientError, outdated)
    return isinstance(error, lost) or _is_temporary_code(sqlstate_of(error))


def _is_temporary_code(code: str) -> bool:
    return code[:2] in _TEMPORARY_CLASSES or code in _TEMPORARY
