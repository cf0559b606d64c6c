"""Several executors in one test process, and the ways in which each of them can end."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from inspect import isawaitable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from support.postgres import fetch

from asgi_durable import Durable
from asgi_durable.engine.executor import Executor
from asgi_durable.storage.protocol import Storage

PATIENCE_SECONDS = 50.0
POLL_SECONDS = 0.01


def storage_of(durable: Durable) -> Storage:
    """Return the storage that a started instance uses."""
    running = durable.engine._running
    assert running is not None
    return running.services.storage


def executor_of(durable: Durable) -> Executor:
    """Return what a started instance is among the executors."""
    running = durable.engine._running
    assert running is not None
    return running.services.executor


async def until(condition: Callable[[], Any]) -> Any:
    """Ask again until the answer is true, and return it."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = condition()
            if isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(POLL_SECONDS)


async def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Run a statement without the library; our tables need no schema."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return await asyncio.to_thread(_query_file, parts.path.removeprefix("/"), sql)
    options = [(name, value) for name, value in parse_qsl(parts.query) if name != "schema"]
    rows = await fetch(urlunsplit(parts._replace(query=urlencode(options))), sql)
    return [tuple(row) for row in rows]


async def row_of(url: str, workflow_id: str, columns: str) -> tuple[Any, ...]:
    """Return columns of a workflow's row."""
    sql = f"SELECT {columns} FROM asgi_durable_workflows WHERE workflow_id = '{workflow_id}'"
    (row,) = await query(url, sql)
    return row


async def kill(durable: Durable) -> None:
    """End an executor as SIGKILL would: locks and connections are gone, and nobody is told.

    Its runs are interrupted, so it must have been made with ``drain_timeout=0.0``.
    """
    storage: Any = storage_of(durable)
    storage.retire = storage.send = _nothing
    await durable.engine.stop()


@asynccontextmanager
async def declared_dead(durable: Durable) -> AsyncIterator[None]:
    """Let others find an executor dead, as if its process had been stopped with SIGSTOP.

    Inside, it is dead and does not know it; at the end its heartbeat goes on. Another
    executor has to live.
    """
    executor, storage = executor_of(durable), storage_of(durable)
    stopped, goes_on = threading.Event(), threading.Event()

    async def beat(*args: Any, **kwargs: Any) -> Any:
        stopped.set()
        while not goes_on.is_set():
            await asyncio.sleep(POLL_SECONDS)
        return await type(storage).beat(storage, *args, **kwargs)

    storage.beat = beat  # type: ignore[method-assign]
    try:
        executor.beat_soon()
        await until(stopped.is_set)
        await _end_lease(durable.url, executor.id)
        await until(lambda: _is_dead(durable.url, executor.id))
        yield
    finally:
        goes_on.set()
        del storage.beat


async def is_another(durable: Durable, executor_id: str) -> None:
    """Wait until a process has noticed that it was declared dead."""
    await until(lambda: executor_of(durable).id != executor_id)


async def _end_lease(url: str, executor_id: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        os.utime(f"{parts.path.removeprefix('/')}-executor-{executor_id}", (0, 0))
        return
    where = f"WHERE executor_id = '{executor_id}'"
    await query(url, f"UPDATE asgi_durable_executors SET lease_expires_at_us = 0 {where}")


async def _is_dead(url: str, executor_id: str) -> bool:
    where = f"WHERE executor_id = '{executor_id}' AND state = 'ALIVE'"
    return not await query(url, f"SELECT 1 FROM asgi_durable_executors {where}")


def _query_file(path: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(Path(path), timeout=PATIENCE_SECONDS)) as connection:
        return connection.execute(sql).fetchall()


async def _nothing(*_: object) -> None:
    """Nobody is told."""
