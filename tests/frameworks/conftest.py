"""Fixtures of the tests of frameworks: each runs on each database."""

from __future__ import annotations

import pytest


@pytest.fixture
def url(database_url: str) -> str:
    """The URL of a database that does not exist yet."""
    return database_url
