"""Transactions that are cancelled at any await keep no lock, no connection and no thread."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest
import sqlalchemy as sa
from support.cancelling import cancel_at_each_await
from support.databases.postgres import fetch
from support.databases.storages import Adapter, OpenStorage, until
from support.records import EXECUTOR, step, workflow

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import StepSlot
from asgi_durable.storage.writes import StartWorkflow

pytestmark = pytest.mark.anyio

SLOT = StepSlot(workflow_id="w", step_number=0, executor_id=EXECUTOR)
INSERT = sa.text("INSERT INTO effects VALUES ('x')")
# More than the connections of a pool.
MANY = 20


@pytest.fixture(autouse=True)
async def _started(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (name TEXT)"))


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def work(storage: Storage) -> None:
    async with storage.transaction(SLOT) as transaction:
        await transaction.session.execute(INSERT)
        await transaction.session.execute(sa.text("SELECT * FROM effects"))
        await transaction.session.execute(INSERT)
        await transaction.record(step())


async def fail(storage: Storage) -> None:
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(INSERT)
        raise ZeroDivisionError


async def continue_after_it(storage: Storage) -> None:
    async with storage.transaction(None) as transaction:
        try:
            await transaction.session.execute(INSERT)
            await transaction.session.execute(sa.text("SELECT * FROM effects"))
        except asyncio.CancelledError:
            await transaction.session.execute(INSERT)


async def lock_is_free(url: str) -> bool:
    """Return True if another connection can write, without waiting."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(urlsplit(url).path[1:], timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True
    try:
        await fetch(url, "LOCK TABLE effects IN ACCESS EXCLUSIVE MODE NOWAIT")
    except asyncpg.LockNotAvailableError:
        return False
    return True


@pytest.mark.parametrize("and_after", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize("body", [work, fail, continue_after_it])
async def test_a_transaction_that_is_cancelled_leaves_its_lock_at_once(
    storage: Storage, new_storage: Adapter, body, *, and_after: bool
) -> None:
    async def is_free() -> bool:
        return await lock_is_free(new_storage.url)

    async def check() -> None:
        if new_storage.one_writer:
            assert await is_free()
        # A server notices a moment later that its client has disconnected.
        await until(is_free)

    assert await cancel_at_each_await(lambda: body(storage), check, and_after=and_after) > 3
    # Every connection is in the pool again, or closed.
    async with asyncio.timeout(60):
        for _ in range(MANY):
            async with storage.transaction(None) as transaction:
                await transaction.session.execute(INSERT)


@pytest.mark.parametrize("and_after", [False, True], ids=["once", "again and again"])
async def test_connections_that_are_cancelled_leave_no_thread(
    open_storage: OpenStorage, *, and_after: bool
) -> None:
    before = set(threading.enumerate())
    storage = await open_storage("another")

    async def nothing() -> None: ...

    await cancel_at_each_await(lambda: fail(storage), nothing, and_after=and_after)
    await storage.close()

    async def have_ended() -> bool:
        return set(threading.enumerate()) <= before

    await until(have_ended)
