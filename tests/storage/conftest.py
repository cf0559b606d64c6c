"""The conformance suite of storage adapters: every test here runs on every adapter.

To run it on another adapter, copy ``tests/storage`` and ``tests/support`` and override
``new_storage``. Modules that are named after an adapter test that one only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.databases.proxy import Proxy
from support.databases.storages import POSTGRES, SQLITE, Adapter, OpenStorage, enter
from support.records import EXECUTOR

from asgi_durable.storage.protocol import Storage

ADAPTERS = {"sqlite": SQLITE, "postgresql": POSTGRES}


@pytest.fixture
def new_storage(database_url: str) -> Adapter:
    """Make storages that all use one database, which is empty at first."""
    return Adapter(url=database_url, **ADAPTERS[urlsplit(database_url).scheme])


@pytest.fixture
async def open_storage(new_storage: Adapter) -> AsyncIterator[OpenStorage]:
    """Open storages, register an executor in each, and close them after the test."""
    async with AsyncExitStack() as opened:

        async def open_and_enter(executor_id: str, **options: Any) -> Storage:
            storage = new_storage()
            await storage.open()
            opened.push_async_callback(storage.close)
            await enter(storage, executor_id, **options)
            return storage

        yield open_and_enter


@pytest.fixture
async def storage(open_storage: OpenStorage) -> Storage:
    """An open storage, with the executor ``executor-1``."""
    return await open_storage(EXECUTOR)


@pytest.fixture
async def other(open_storage: OpenStorage) -> Storage:
    """A second open storage on the same database, with the executor ``executor-2``."""
    return await open_storage("executor-2")


@pytest.fixture
async def proxy(own_postgres_url: str) -> AsyncIterator[Proxy]:
    """A network between a test and its own Postgres server."""
    async with Proxy(urlsplit(own_postgres_url).port or 5432) as proxy:
        yield proxy


@pytest.fixture
def proxied_url(proxy: Proxy, own_postgres_url: str) -> str:
    """The URL of the database through a network that can fall silent."""
    port = urlsplit(own_postgres_url).port or 5432
    return own_postgres_url.replace(f":{port}/", f":{proxy.port}/")
