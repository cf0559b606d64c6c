"""Several executors in one test process, and the ways in which each of them can end."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from inspect import isawaitable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from asgi_durable import Durable
from asgi_durable.engine.process.executor import Executor
from asgi_durable.storage.protocol import Beat, Storage
from support.databases.pgbouncer import IS_USED
from support.databases.postgres import fetch
from support.interruption import Gate

PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.01
DEFAULTS: dict[str, Any] = {"drain_timeout": 0.0}
if IS_USED:
    # Behind a pooler nothing else tells that an executor was killed.
    DEFAULTS["lease"] = 3.0


class Worker(Durable):
    """An executor that knows a workflow of three steps, ``work``; the second waits at a gate.

    Args:
        url: The database; several workers on one database know the same workflow.
        waits: True if the gate is closed at first.
        max_recovery_attempts: Of the workflow.
        options: More arguments of ``Durable``.

    Attributes:
        began: Workflow and number of every step whose body began here.
        gate: Where the second steps wait.
    """

    def __init__(
        self,
        url: str,
        *,
        waits: bool = False,
        max_recovery_attempts: int | None = 20,
        **options: Any,
    ) -> None:
        super().__init__(url, **DEFAULTS | options)
        self.began: list[tuple[str | None, int]] = []
        self.gate = Gate()
        if not waits:
            self.gate.open()

        @self.step(name="step")
        async def step(number: int) -> int:
            self.began.append((self.workflow_id, number))
            if number == 1:
                await self.gate.wait()
            return number

        @self.workflow(name="work", max_recovery_attempts=max_recovery_attempts)
        async def work() -> list[int]:
            return [await step(number) for number in range(3)]

        self.work = work

    async def begin(self, *workflow_ids: str) -> None:
        """Start workflows, and wait until each is at the gate."""
        for workflow_id in workflow_ids:
            await self.options(workflow_id=workflow_id).start_workflow(self.work)
        await self.is_at_gate(*workflow_ids)

    async def is_at_gate(self, *workflow_ids: str) -> None:
        """Wait until each of these workflows is at the gate."""
        await until(lambda: {(workflow_id, 1) for workflow_id in workflow_ids} <= {*self.began})


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


def note_calls(durable: Durable, method: str) -> list[tuple[Any, ...]]:
    """Return a list that gets the arguments of a storage method's calls from now on."""
    storage, calls = storage_of(durable), []
    wrapped = getattr(storage, method)

    async def noting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return await wrapped(*args, **kwargs)

    setattr(storage, method, noting)
    return calls


async def until(condition: Callable[[], Any]) -> Any:
    """Call a function until its result is true, and return it."""
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


async def result_of(durable: Durable, workflow_id: str) -> Any:
    """Wait for a workflow's result, which makes nobody run it."""
    handle = await durable.retrieve_workflow(workflow_id)
    return await handle.get_result(timeout=PATIENCE_SECONDS)


async def kill(durable: Durable) -> None:
    """End an executor as SIGKILL would: its locks and connections end, without any message.

    Its runs are interrupted, so it must have been made with ``drain_timeout=0.0``.
    """
    storage: Any = storage_of(durable)
    storage.retire = storage.send = _nothing
    await durable.engine.stop()


@asynccontextmanager
async def declared_dead(durable: Durable) -> AsyncIterator[None]:
    """Let others find an executor dead, as if its process had been stopped with SIGSTOP.

    Inside, it is dead and does not know it; at the end its heartbeat continues. Another
    executor must be alive.
    """
    executor, storage = executor_of(durable), storage_of(durable)
    stopped, retry_here = threading.Event(), threading.Event()

    async def beat(*args: Any, **kwargs: Any) -> Any:
        stopped.set()
        while not retry_here.is_set():
            await asyncio.sleep(POLL_SECONDS)
        return await type(storage).beat(storage, *args, **kwargs)

    storage.beat = beat  # type: ignore[method-assign]
    try:
        executor.beat_soon()
        await until(stopped.is_set)
        await end_lease(durable.url, executor.id)
        await until(lambda: _is_dead(durable.url, executor.id))
        yield
    finally:
        retry_here.set()
        del storage.beat


async def is_another(durable: Durable, executor_id: str) -> None:
    """Wait until a process has noticed that it was declared dead."""
    await until(lambda: executor_of(durable).id != executor_id)


async def beats(durable: Durable, number: int) -> None:
    """Wait until an executor has looked around so often, from now on."""
    executor = executor_of(durable)
    on_beat, seen = executor.on_beat, []

    def count(beat: Beat) -> None:
        seen.append(beat)
        on_beat(beat)

    executor.on_beat = count
    try:
        await until(lambda: len(seen) >= number)
    finally:
        executor.on_beat = on_beat


async def end_lease(url: str, executor_id: str) -> None:
    """Let an executor's lease run out now; on SQLite a dead one has none."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        with suppress(FileNotFoundError):
            os.utime(f"{parts.path.removeprefix('/')}-executor-{executor_id}", (0, 0))
        return
    where = f"WHERE executor_id = '{executor_id}'"
    await query(url, f"UPDATE asgi_durable_executors SET lease_expires_at_us = 0 {where}")


async def _is_dead(url: str, executor_id: str) -> bool:
    where = f"WHERE executor_id = '{executor_id}' AND state = 'ALIVE'"
    return not await query(url, f"SELECT 1 FROM asgi_durable_executors {where}")


def _query_file(path: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(
        sqlite3.connect(Path(path), timeout=PATIENCE_SECONDS, isolation_level=None)
    ) as connection:
        return connection.execute(sql).fetchall()


async def _nothing(*_: object) -> None:
    """Send no message."""
