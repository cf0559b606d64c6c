"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asgi_durable import Durable


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The storage adapters need asyncio."""
    return "asyncio"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database that does not exist yet."""
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture
async def durable(url: str) -> AsyncIterator[Durable]:
    """A started instance; functions can be decorated after the start as well."""
    async with Durable(url, drain_timeout=0.0) as durable:
        yield durable
