"""Statuses of the answers that the library itself gives to keyed requests."""

from __future__ import annotations

from collections.abc import Mapping

from asgi_durable import request_errors
from asgi_durable.errors import DurableUsageError, StorageUnavailableError

__all__ = ["DEFAULT_STATUSES", "checked_statuses"]

_ERRORS = [getattr(request_errors, name) for name in request_errors.__all__]

# By code.
DEFAULT_STATUSES: Mapping[str, int] = {
    error.default_code: error.default_status for error in (*_ERRORS, StorageUnavailableError)
}


def checked_statuses(statuses: Mapping[str, int]) -> Mapping[str, int]:
    """Return statuses by code.

    Raises:
        DurableUsageError: A code is none of the library's, or a status none of an error.
    """
    for code, status in statuses.items():
        if code not in DEFAULT_STATUSES:
            msg = f"statuses: {code!r} is none of {', '.join(sorted(DEFAULT_STATUSES))}"
            raise DurableUsageError(msg)
        if not (isinstance(status, int) and 400 <= status <= 599):
            msg = f"statuses: the status of {code} must be 400 to 599, got {status!r}"
            raise DurableUsageError(msg)
    return statuses
