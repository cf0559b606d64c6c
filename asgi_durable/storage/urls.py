"""The parts of a database's URL that every adapter needs: its scheme, and a SQLite file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from urllib.parse import quote, unquote

from asgi_durable.errors import DurableUsageError

__all__ = ["fixed_url", "scheme_of", "shown", "sqlite_file", "without_driver", "working_folder"]

# Drivers that SQLAlchemy's URLs may name. The adapter decides which one connects.
DRIVERS = {
    "sqlite": frozenset({"aiosqlite", "pysqlite"}),
    "postgresql": frozenset({"asyncpg", "psycopg"}),
    "postgres": frozenset({"asyncpg", "psycopg"}),
}
POSTGRES_EXAMPLE = "postgresql://user:password@host/database"
_PLAIN_IN_FOLDERS = "/:\\"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def scheme_of(url: object) -> str:
    """Return a URL's scheme in lower case, for example ``"postgresql+asyncpg"``.

    Raises:
        DurableUsageError: It is no URL; the message shows a correct one.
    """
    if not isinstance(url, str):
        msg = (
            f"a database is named by a URL, a string such as 'sqlite:///orders.db' or "
            f"{POSTGRES_EXAMPLE!r}; got a {type(url).__name__}"
        )
        raise DurableUsageError(msg)
    scheme, separator, _ = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        msg = f"{shown(url)!r} is not the URL of a database: write {_suggestion(url)}"
        raise DurableUsageError(msg)
    return scheme.lower()


def without_driver(url: str) -> str:
    """Return a URL without the driver in its scheme, if that is one of ``DRIVERS``.

    Raises:
        DurableUsageError: It is no URL.
    """
    scheme = scheme_of(url)
    dialect, _, driver = scheme.partition("+")
    if driver in DRIVERS.get(dialect, ()):
        scheme = dialect
    return scheme + url[url.index("://") :]


def shown(url: str) -> str:
    """Return a URL for a message, without user, password and parameters."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if scheme.lower().partition("+")[0] != "sqlite":
        # Split at the last "@": a password that is not percent-encoded may have others.
        _, at, rest = rest.rpartition("@")
        rest = f"***{at}{rest.partition('?')[0]}" if at else rest.partition("?")[0]
    if not separator and "password" in rest.lower():
        rest = "***"
    return f"{scheme}{separator}{rest}"


def sqlite_file(url: str) -> tuple[str, str]:
    """Return the file and the query of a SQLite URL, as SQLAlchemy reads them.

    The file is everything between the third slash and a question mark, percent-decoded; so a
    ``#`` is part of it. It is empty for a database in memory.

    Raises:
        DurableUsageError: The URL names no file.
    """
    scheme_of(url)
    address, _, query = url.partition("://")[2].partition("?")
    file = unquote(address[1:])
    if address in ("", "/:memory:"):
        return "", query
    if not address.startswith("/") or not file or file.endswith("/") or "\0" in file:
        msg = (
            f"{shown(url)!r} names no file: write sqlite:///orders.db for a file in the working "
            "directory, or sqlite:////srv/data/orders.db, with four slashes, for an absolute path"
        )
        raise DurableUsageError(msg)
    return file, query


def fixed_url(url: str, folder: str | None, flavour: ModuleType = os.path) -> str:
    """Return a URL that still names the same file if the process changes its directory.

    Args:
        url: The URL of any database; one that names no file is returned unchanged.
        folder: The working directory, ``None`` if it is deleted.
        flavour: The rules for paths, ``posixpath`` or ``ntpath``.

    Raises:
        DurableUsageError: The file is relative to a directory that is deleted.
    """
    if scheme_of(url).partition("+")[0] != "sqlite":
        return url
    file, query = sqlite_file(url)
    if not file or flavour.isabs(file) or flavour.splitdrive(file)[0]:
        return url
    if folder is None:
        msg = (
            f"{shown(url)!r} is relative to a working directory that does not exist any more: "
            "write an absolute path, sqlite:////srv/data/orders.db"
        )
        raise DurableUsageError(msg)
    relative = url.partition("://")[2].partition("?")[0]
    fixed = f"sqlite:///{quote(folder, safe=_PLAIN_IN_FOLDERS)}{relative}"
    return f"{fixed}?{query}" if query else fixed


def working_folder() -> str | None:
    """Return the working directory, ``None`` if it is deleted."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return None


def _suggestion(url: str) -> str:
    scheme, colon, rest = url.partition(":")
    if colon and scheme.lower() in ("postgres", "postgresql"):
        return POSTGRES_EXAMPLE
    if colon and scheme.lower() == "sqlite":
        url = rest
    if not url or shown(url) != url:
        return f"sqlite:///orders.db or {POSTGRES_EXAMPLE}"
    return f"sqlite:///{url} for a SQLite file, or {POSTGRES_EXAMPLE}"
