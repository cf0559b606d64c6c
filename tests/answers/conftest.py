"""The tests of responses run with each framework, on each database."""

from __future__ import annotations

import pytest
from answers.applications import FRAMEWORKS
from answers.shop import create_tables

pytest.register_assert_rewrite("answers.expectations")

# One database is enough for a second way of using a framework.
PLACES = [
    *((framework, "sqlite") for framework in FRAMEWORKS),
    *((framework, "postgres") for framework in FRAMEWORKS if framework != "fastapi-installed"),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a database on both, and what cannot depend on it on one."""
    if "url" in metafunc.fixturenames:
        metafunc.parametrize(("framework", "empty_url"), PLACES, indirect=True)
    elif "framework" in metafunc.fixturenames:
        metafunc.parametrize("framework", FRAMEWORKS, indirect=True)


@pytest.fixture
def framework(request: pytest.FixtureRequest) -> str:
    """The framework of the application."""
    name: str = request.param
    return name


@pytest.fixture
def empty_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database that does not exist yet."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def url(empty_url: str) -> str:
    """The URL of a database with all tables, on each database there is."""
    await create_tables(empty_url)
    return empty_url


@pytest.fixture
async def file_url(sqlite_url: str) -> str:
    """The URL of a database with all tables, for what no database can make a difference to."""
    await create_tables(sqlite_url)
    return sqlite_url
