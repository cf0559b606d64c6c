"""The marker of tests that nothing else may run beside, and new databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.databases.postgres import temporary_schema, with_schema
from support.processes.killed_services import NewURL


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "measures_time: says how long something takes at most")


@pytest.fixture(params=["sqlite", "postgres"])
def new_url(request: pytest.FixtureRequest) -> Iterator[NewURL]:
    """Gives the URL of a database that does not exist yet, each time another one."""
    if request.param == "sqlite":
        yield lambda folder: f"sqlite:///{folder}/test.db"
        return
    server = request.getfixturevalue("postgres")
    with ExitStack() as schemas:
        yield lambda _: with_schema(server.url, schemas.enter_context(temporary_schema(server.url)))
