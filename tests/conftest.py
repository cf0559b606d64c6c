"""Fixtures that all tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.databases.pgbouncer import IS_USED, PgBouncer, find_pgbouncer
from support.databases.postgres import GivenServer, PostgresServer, temporary_schema, with_schema

from asgi_durable import Durable


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of what no pooler can do, and fail at once where one is missing."""
    config.addinivalue_line(
        "markers",
        "needs_sessions(reason): not with a pooler, as each connection has to be a session of its "
        "own on the Postgres server",
    )
    if IS_USED:
        try:
            find_pgbouncer()
        except AssertionError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about poolers; or, where there is one, what does not go through it."""
    left_out = [item for item in items if not _belongs_here(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _belongs_here(item)]


def _belongs_here(item: pytest.Item) -> bool:
    fixtures: set[str] = set(getattr(item, "fixturenames", ()))
    if not IS_USED:
        return fixtures.isdisjoint({"pgbouncer", "own_pgbouncer"})
    # A fixture that is chosen by a parameter is not among those of the test.
    chosen = getattr(item, "callspec", None)
    is_on_postgres = any("postgres" in name for name in fixtures) or (
        chosen is not None and "postgres" in chosen.params.values()
    )
    return is_on_postgres and item.get_closest_marker("needs_sessions") is None


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what examples do to the root logger, as applications do."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        # Those of pytest are others in each phase of a test.
        is_pytests = type(handler).__module__.startswith("_pytest")
        if handler not in handlers and not is_pytests:
            root.removeHandler(handler)


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


@pytest.fixture(scope="session")
def own_pgbouncer(own_postgres: PostgresServer) -> Iterator[PgBouncer]:
    """A pooler before our own Postgres."""
    with PgBouncer(own_postgres.url) as pooler:
        yield pooler


@pytest.fixture(scope="session")
def pgbouncer(
    request: pytest.FixtureRequest, postgres: PostgresServer | GivenServer
) -> Iterator[PgBouncer]:
    """A pooler before the Postgres that tests share."""
    if isinstance(postgres, GivenServer):
        with PgBouncer(postgres.url) as pooler:
            yield pooler
    else:
        yield request.getfixturevalue("own_pgbouncer")


@pytest.fixture
def postgres_url(
    request: pytest.FixtureRequest, postgres: PostgresServer | GivenServer
) -> Iterator[str]:
    """The URL of a schema on the shared Postgres that does not exist yet."""
    pooler = request.getfixturevalue("pgbouncer") if IS_USED else None
    with new_schema(postgres, pooler) as url:
        yield url


@pytest.fixture
def own_postgres_url(request: pytest.FixtureRequest, own_postgres: PostgresServer) -> Iterator[str]:
    """The URL of a schema on our own Postgres that does not exist yet."""
    pooler = request.getfixturevalue("own_pgbouncer") if IS_USED else None
    with new_schema(own_postgres, pooler) as url:
        yield url


@contextmanager
def new_schema(server: PostgresServer | GivenServer, pooler: PgBouncer | None) -> Iterator[str]:
    """Make up a schema; give the URL of it, through the pooler if there is one."""
    with temporary_schema(server.url) as schema:
        if pooler is None:
            yield with_schema(server.url, schema)
        else:
            with pooler.database(schema) as url:
                yield url


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
