"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.postgres import GivenServer, PostgresServer, temporary_schema, with_schema

from asgi_durable import Durable


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The storage adapters need asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[PostgresServer]:
    """A Postgres of our own, that may be killed and restarted and loses no commit by that."""
    settings = {"synchronous_commit": "on", "deadlock_timeout": "100ms"}
    with PostgresServer(settings=settings) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> PostgresServer | GivenServer:
    """The Postgres that tests share: that of ``DATABASE_URL``, or our own."""
    if given := os.environ.get("DATABASE_URL"):
        return GivenServer(given)
    server: PostgresServer = request.getfixturevalue("own_postgres")
    return server


@pytest.fixture
def postgres_url(postgres: PostgresServer | GivenServer) -> Iterator[str]:
    """The URL of a schema on the shared Postgres that does not exist yet."""
    with temporary_schema(postgres.url) as schema:
        yield with_schema(postgres.url, schema)


@pytest.fixture
def own_postgres_url(own_postgres: PostgresServer) -> Iterator[str]:
    """The URL of a schema on our own Postgres that does not exist yet."""
    with temporary_schema(own_postgres.url) as schema:
        yield with_schema(own_postgres.url, schema)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database that does not exist yet, on each database there is.

    A module whose tests should run on all of them overrides ``url``, and with that ``durable``::

        @pytest.fixture
        def url(database_url: str) -> str:
            return database_url
    """
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def url(sqlite_url: str) -> str:
    """The URL of a database that does not exist yet."""
    return sqlite_url


@pytest.fixture
async def durable(url: str) -> AsyncIterator[Durable]:
    """A started instance; functions can be decorated after the start as well."""
    async with Durable(url, drain_timeout=0.0) as durable:
        yield durable
