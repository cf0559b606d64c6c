"""Storage adapters as their tests use them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, TypeVar

from asgi_durable.storage.protocol import Beat, Runnable, Storage
from asgi_durable.storage.records import TakenWorkflow
from asgi_durable.storage.writes import OutcomeKind, Write
from support.databases.pgbouncer import IS_USED
from support.paths import TESTS
from support.records import EXECUTOR

T = TypeVar("T")

WORK = Runnable(names=frozenset({"work"}))
LEASE_SECONDS = 60.0
# So short that it runs out while a test waits for that.
TINY_LEASE_SECONDS = 0.2
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.02

OpenStorage = Callable[..., Awaitable[Storage]]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A storage adapter and one empty database; call it for a storage on that database.

    Attributes:
        path: The adapter's class, as ``package.module:Class``.
        url: The database, as the class takes it.
        sends_messages: True if ``send`` reaches other executors.
        notices_kills: True if a process that was killed is noticed long before its lease ends.
        one_writer: True if nobody else writes while a transaction is open: nobody can be
            declared dead then either.
    """

    path: str
    url: str
    sends_messages: bool
    notices_kills: bool
    one_writer: bool

    def __call__(self) -> Storage:
        module, name = self.path.split(":")
        storage: Storage = getattr(import_module(module), name)(self.url)
        return storage


SQLITE: dict[str, Any] = {
    "path": "asgi_durable.storage.sqlite:SQLiteStorage",
    "sends_messages": False,
    "notices_kills": True,
    "one_writer": True,
}
POSTGRES: dict[str, Any] = {
    "path": "asgi_durable.storage.postgres:PostgresStorage",
    # A pooler's connections are no sessions, which LISTEN and advisory locks need.
    "sends_messages": not IS_USED,
    "notices_kills": not IS_USED,
    "one_writer": False,
}


async def until(condition: Callable[[], Awaitable[T]]) -> T:
    """Call a function until its result is true, and return it."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (answer := await condition()):
            await asyncio.sleep(POLL_SECONDS)
        return answer


async def kinds(storage: Storage, *writes: Write) -> list[OutcomeKind]:
    """Commit writes in one batch; return what became of each."""
    return [outcome.kind for outcome in await storage.commit(writes)]


async def enter(
    storage: Storage,
    executor_id: str = EXECUTOR,
    *,
    lease_seconds: float = LEASE_SECONDS,
    on_message: Callable[[str], None] = lambda message: None,
) -> None:
    """Enter an executor among the living."""
    await storage.register(executor_id, lease_seconds=lease_seconds, on_message=on_message)


async def beat(
    storage: Storage,
    executor_id: str = EXECUTOR,
    *,
    lease_seconds: float = LEASE_SECONDS,
    runnable: Runnable = WORK,
) -> Beat:
    """Beat once."""
    return await storage.beat(executor_id, lease_seconds=lease_seconds, runnable=runnable)


async def is_alive(storage: Storage, executor_id: str = EXECUTOR) -> bool:
    """Beat once; return whether the executor is alive."""
    return (await beat(storage, executor_id)).is_alive


async def orphans_appear(storage: Storage, executor_id: str = EXECUTOR) -> None:
    """Beat until a workflow is free."""

    async def has_orphans() -> bool:
        return (await beat(storage, executor_id)).has_orphans

    await until(has_orphans)


async def take_over(
    storage: Storage,
    executor_id: str = EXECUTOR,
    *,
    runnable: Runnable = WORK,
    limit: int = 100,
    suspects: bool = False,
) -> list[str]:
    """Take over what is free; return the ids."""
    taken = await storage.take_over(executor_id, runnable=runnable, limit=limit, suspects=suspects)
    return [one.workflow.workflow_id for one in taken]


async def take_one(storage: Storage, executor_id: str = EXECUTOR, **options: Any) -> TakenWorkflow:
    """Take over the one workflow that is free."""
    wanted: dict[str, Any] = {"runnable": WORK, "limit": 9, "suspects": False}
    (taken,) = await storage.take_over(executor_id, **wanted | options)
    return taken


OWNER = """
import asyncio, json, sys
from support.records import workflow
from support.databases.storages import Adapter, enter
from asgi_durable.storage.writes import StartWorkflow

async def main(executor_id):
    storage = Adapter(**json.loads(sys.argv[1]))()
    await storage.open()
    await enter(storage, executor_id)
    await storage.commit([StartWorkflow(workflow(executor_id=executor_id))])
    print("owns it", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[2]))
"""


@contextmanager
def process_that_owns_a_workflow(
    adapter: Adapter, executor_id: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a process with an executor of a long lease that has started ``w``; kill it after."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, json.dumps(asdict(adapter)), executor_id],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "owns it\n"
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()
