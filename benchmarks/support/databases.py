"""The databases that contestants write to: files, and a Postgres server of our own."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import asyncpg

# The server of the tests, which knows how to be started by anybody anywhere.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from support.databases.postgres import PostgresServer, fetch, free_port

__all__ = ["DATABASES", "Databases", "databases", "fetch", "free_port"]

SQLITE, POSTGRES = "sqlite", "postgres"
DATABASES = (SQLITE, POSTGRES)
# The server's defaults: an acknowledged commit survives a loss of power.
DURABLE_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "400",
}
START_SECONDS = 30.0


class Databases:
    """Makes a new database for each contestant, all on the same disk and server.

    Args:
        folder: For files.
        server: Where a Postgres was asked for.
    """

    def __init__(self, folder: Path, server: PostgresServer | None) -> None:
        self._folder = folder
        self._server = server
        self._count = 0

    def new(self, kind: str, owner: str) -> str:
        """Create an empty database and return its URL."""
        self._count += 1
        name = f"{owner}_{self._count}".replace("-", "_").lower()
        if kind == SQLITE:
            return f"sqlite:///{self._folder}/{name}.db"
        assert self._server is not None, "no Postgres was started"
        asyncio.run(_create(self._server.url, name))
        return self._server.url.removesuffix("postgres") + name

    @property
    def postgres_version(self) -> str | None:
        """The server's version, ``None`` without one."""
        if self._server is None:
            return None
        (row,) = asyncio.run(fetch(self._server.url, "SHOW server_version"))
        return str(row[0])


@contextmanager
def databases(
    kinds: Sequence[str] = DATABASES, settings: Mapping[str, str] | None = None
) -> Iterator[Databases]:
    """Offer databases, and remove them at the end.

    Args:
        kinds: Of ``DATABASES``; the server is started only where it is among them.
        settings: More of ``postgresql.conf``.
    """
    # Beside the code, not in a folder for temporary files: that may be in memory.
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory(prefix=".data-", dir=here) as folder:
        if POSTGRES not in kinds:
            yield Databases(Path(folder), None)
            return
        with PostgresServer(settings={**DURABLE_SETTINGS, **(settings or {})}) as server:
            yield Databases(Path(folder), server)


async def _create(url: str, name: str) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    while True:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        except asyncpg.ObjectInUseError:  # somebody looks at the template just now
            if time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(0.1)
        else:
            return
        finally:
            await connection.close()
