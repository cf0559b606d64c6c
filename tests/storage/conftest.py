"""The conformance suite of storage adapters: every test here runs on every adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.sqlite import SQLiteStorage

EXECUTOR = "executor-1"


@pytest.fixture(params=["sqlite"])
def new_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    """Make adapters that all use one database."""
    adapters = {"sqlite": lambda: SQLiteStorage(f"sqlite:///{tmp_path}/test.db")}
    return adapters[request.param]


@pytest.fixture
async def storage(new_storage: Callable[[], Storage]) -> AsyncIterator[Storage]:
    """An open storage, for the executor ``executor-1``."""
    storage = new_storage()
    await storage.open(EXECUTOR)
    yield storage
    await storage.close()
