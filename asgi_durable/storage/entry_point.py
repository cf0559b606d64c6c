"""Finding the storage adapter that is installed for a URL."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

from asgi_durable.errors import DurableUsageError

__all__ = ["find_storage"]

STORAGE_ENTRY_POINTS = "asgi_durable.storage"


def find_storage(url: str) -> Any:
    """Return the entry point of the adapter for a URL; it is imported at the first start.

    Raises:
        DurableUsageError: None is installed for the URL's scheme.
    """
    scheme = urlsplit(url).scheme
    found = entry_points(group=STORAGE_ENTRY_POINTS, name=scheme)
    if not found:
        known = sorted(entry_points(group=STORAGE_ENTRY_POINTS).names)
        msg = f"no storage adapter for {scheme!r}; there are {', '.join(known) or 'none'}"
        raise DurableUsageError(msg)
    return next(iter(found))
