"""The meaning of errors of PostgreSQL and its driver: retry later, never, or a bad row."""

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

# Conditions that pass: a lost connection, no resources, a server that stops or starts.
_PASSING_CLASSES = frozenset({"08", "53", "57", "58"})
_PASSING = frozenset(
    {
        "25006",  # read-only: the server is not, or no longer, the primary one
        "25P03",  # idle in a transaction for too long
        "25P04",  # a transaction that took too long
        "40001",
        "40P01",
        "55P03",
    }
)
# Errors about a row that the database cannot hold.
_BAD_ROW_CLASSES = frozenset({"22", "23", "54"})
_TOO_LARGE = "invalid memory alloc request size"
# A pooler handed our prepared statements to another server connection.
_PREPARED_ELSEWHERE = frozenset({"26000", "42P05"})
# Messages of a pooler with the code of a lost connection, although no retry helps.
_POOLER_REFUSALS = ("no such user", "no such database", "unsupported startup parameter")
# Parts of OpenSSL that read certificates and keys, and not what comes from the network.
_FILE_LIBRARIES = frozenset({"PEM", "X509", "ASN1"})
_UNDEFINED = frozenset({"42P01", "3F000"})
_REFUSED_RIGHT = "42501"


class ChangedMeanwhileError(Exception):
    """A row is not as it was a moment ago; nothing was written."""


# The driver's errors beyond those that the server sends.
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def sqlstate_of(error: BaseException | None) -> str:
    """Return the five characters of an error that the server sent, ``""`` for any other."""
    return getattr(error, "sqlstate", None) or ""


def is_bad_row(error: BaseException) -> bool:
    """Tell whether a row is to blame, which the driver cannot encode or the server not hold."""
    code = sqlstate_of(error)
    if code:
        return code[:2] in _BAD_ROW_CLASSES or _TOO_LARGE in str(error)
    # The driver's own DataError is a ValueError, as are those of str.encode().
    return isinstance(error, (ValueError, OverflowError))


def is_harmless(error: BaseException) -> bool:
    """Tell whether the connection is as good after this error as it was before."""
    code = sqlstate_of(error)
    passing = code[:2] in _PASSING_CLASSES or code in {"25006", "25P03", "25P04"}
    return is_bad_row(error) or (bool(code) and not passing)


def is_undefined(error: BaseException) -> bool:
    """Tell whether a table or its schema does not exist."""
    return sqlstate_of(error) in _UNDEFINED


def is_refused_right(error: BaseException) -> bool:
    """Tell whether the role lacks the right to do it."""
    return sqlstate_of(error) == _REFUSED_RIGHT


def storage_error(error: BaseException, database: str) -> StorageError | None:
    """Return the library's error for a failure of one of its own statements.

    Args:
        error: The driver's error.
        database: The name of the database, for the message.

    Returns:
        ``None`` for a bad row, and for an error that is not the database's.
    """
    if isinstance(error, StorageError) or is_bad_row(error):
        return None
    # Without the lines of details and hints, which may show rows.
    message = f"{database}: {str(error).partition(chr(10))[0] or type(error).__name__}"
    if _is_passing(error) and not str(error).startswith(_POOLER_REFUSALS):
        return StorageUnavailableError(message)
    if sqlstate_of(error) in _PREPARED_ELSEWHERE:
        return StorageError(
            f"{message} (behind a pooler in transaction mode add ?prepared_statements=false)"
        )
    return StorageError(message) if isinstance(error, DRIVER_ERRORS) else None


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    if isinstance(error, ssl.SSLError) and error.library in _FILE_LIBRARIES:
        return False
    # A prepared statement whose tables were changed meanwhile is prepared anew the next time.
    outdated = asyncpg.exceptions.InvalidCachedStatementError
    lost = (OSError, EOFError, asyncpg.InterfaceError, asyncpg.InternalClientError, outdated)
    return isinstance(error, lost) or _is_passing_code(sqlstate_of(error))


def _is_passing_code(code: str) -> bool:
    return code[:2] in _PASSING_CLASSES or code in _PASSING
