"""Find the installed storage adapter for a URL."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.urls import scheme_of, without_driver

__all__ = ["find_storage", "load_storage"]

STORAGE_ENTRY_POINTS = "asgi_durable.storage"
# The extra of asgi-durable that installs a package which an adapter needs.
EXTRAS = {"asyncpg": "postgres", "psycopg": "postgres"}


def find_storage(url: str) -> EntryPoint:
    """Return the entry point of the adapter for a URL, without importing the adapter.

    Raises:
        DurableUsageError: It is no URL, or no adapter is installed for its scheme.
    """
    scheme = scheme_of(url)
    # Another package may have an adapter for one driver only, such as "postgresql+psycopg".
    for name in (scheme, scheme_of(without_driver(url))):
        for found in entry_points(group=STORAGE_ENTRY_POINTS, name=name):
            return found
    known = sorted(entry_points(group=STORAGE_ENTRY_POINTS).names)
    msg = f"no storage adapter for {scheme!r}; there are {', '.join(known) or 'none'}"
    raise DurableUsageError(msg)


def load_storage(url: str) -> Any:
    """Import the adapter for a URL, and return its class.

    Raises:
        DurableUsageError: No adapter is installed, or a package that it needs is missing.
    """
    found = find_storage(url)
    try:
        return found.load()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package == __name__.partition(".")[0]:
            raise
        remedy = EXTRAS.get(package)
        install = f"pip install 'asgi-durable[{remedy}]'" if remedy else f"install {package}"
        msg = f"a database of {found.name!r} needs the package {package!r}: {install}"
        raise DurableUsageError(msg) from error
