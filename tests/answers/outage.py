"""A database that takes no writes for a while."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from answers.shop import Shop

__all__ = ["Outage", "impatient_shop"]

# For how long a write waits for a lock, and no longer: nobody gives it up in these tests.
SQLITE_SECONDS = 0.1
POSTGRES_MILLISECONDS = 100


class Outage:
    """Keeps the library's requests from being written, from ``begin`` to ``end``.

    At the end of the context it is over in any case.

    Args:
        url: The database.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._file: sqlite3.Connection | None = None
        self._server: asyncpg.Connection | None = None

    async def begin(self) -> None:
        """Take the lock."""
        if self._parts.scheme == "sqlite":
            path = Path(self._parts.path.removeprefix("/"))
            self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            await asyncio.to_thread(self._file.execute, "BEGIN IMMEDIATE")
            return
        settings = [(k, value) for k, value in parse_qsl(self._parts.query) if k != "schema"]
        url = urlunsplit(self._parts._replace(query=urlencode(settings)))
        self._server = await asyncpg.connect(url)
        await self._server.execute("BEGIN")
        await self._server.execute("LOCK TABLE asgi_durable_workflows IN EXCLUSIVE MODE")

    async def end(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
        if self._server is not None:
            await self._server.close()
        self._file = self._server = None

    async def __aenter__(self) -> Self:
        """Nothing is locked yet."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the outage."""
        await self.end()


def impatient_shop(url: str, framework: str, **policy: object) -> Shop:
    """Return a shop that does not wait for its database to come back."""
    if urlsplit(url).scheme == "sqlite":
        url = f"{url}?busy_timeout={SQLITE_SECONDS}"
    else:
        url = f"{url}&lock_timeout={POSTGRES_MILLISECONDS}"
    return Shop(url, framework, storage_patience=0.0, **policy)
