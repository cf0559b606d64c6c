"""The counting service in several processes, and what they have done, read without the library."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from support.databases.postgres import fetch
from support.paths import CRASH_PROGRAMS
from support.processes.server import Server

GIVE_UP_AFTER_SECONDS = 100.0
PAUSE_SECONDS = 0.2
POLL_SECONDS = 0.02
# Statuses and errors that a client may see while processes die, stop and take over.
RETRIED_STATUSES = frozenset({409, 503})

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: a step's body has begun.

    Attributes:
        at: The time, by ``time.time()``.
        workflow_id: The step's workflow.
        step: The step's number.
        pid: The process.
    """

    at: float
    workflow_id: str
    step: int
    pid: int


@dataclass(frozen=True)
class Takeover:
    """A workflow that continued in another process.

    Attributes:
        workflow_id: The workflow.
        seconds: The time from the end of the one process to the next step in the other one.
    """

    workflow_id: str
    seconds: float


class Service:
    """The counting service: servers, their database and their ledger.

    Args:
        folder: Where all of it is, but for a Postgres.
        url: The database.
        size: How many servers; none is started.
        arguments: More arguments of uvicorn.
        settings: More arguments of ``Durable``.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        size: int = 2,
        arguments: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.url = url
        self._folder = folder
        self._environment = {
            "ASGI_DURABLE_URL": url,
            "COUNTING_FOLDER": str(folder),
            "COUNTING_SETTINGS": json.dumps(settings),
        }
        self._arguments = arguments
        self.servers = [self._server(f"server-{number}") for number in range(size)]
        # When a process ended, and what each recorded step's body had run by then.
        self.ends: dict[int, float] = {}
        self._recorded: dict[tuple[str, int], int] = {}
        self._entries: list[Entry] = []
        self._bytes_read = 0

    @contextmanager
    def running(self) -> Iterator[list[Server]]:
        """Start all servers at once; end them however they are."""
        with ExitStack() as stack:
            for server in self.servers:
                stack.push(server)
            with ThreadPoolExecutor() as threads:
                list(threads.map(Server.start, self.servers))
            yield self.servers

    @property
    def urls(self) -> list[str]:
        """Where the servers are."""
        return [server.url for server in self.servers]

    def open_gate(self) -> None:
        """Let everybody pass the gate."""
        (self._folder / "gate").touch()

    async def end(self, server: Server, how: signal.Signals) -> int:
        """End a server; return its exit code."""
        pid, sent_at = server.pid, time.time()
        if how is signal.SIGKILL:
            server.kill()
            self.ends[pid] = sent_at
            return -signal.SIGKILL
        code = await asyncio.to_thread(server.terminate)
        self.ends[pid] = time.time()
        return code

    def ledger(self) -> Sequence[Entry]:
        """Return which steps have begun, in this order."""
        path = self._folder / "ledger"
        if path.exists():
            with path.open("rb") as ledger:
                ledger.seek(self._bytes_read)
                read = ledger.read()
            whole_lines = read[: read.rfind(b"\n") + 1]
            self._bytes_read += len(whole_lines)
            for line in whole_lines.splitlines():
                at, name, step, pid = line.decode().split()
                self._entries.append(Entry(float(at), name, int(step), int(pid)))
        return self._entries

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Read from the database."""
        parts = urlsplit(self.url)
        if parts.scheme == "sqlite":
            return await asyncio.to_thread(_query_file, parts.path.removeprefix("/"), sql)
        return [tuple(row) for row in await fetch(self.url, sql)]

    async def is_locked(self) -> bool:
        """Tell whether nobody can write, as somebody is in the middle of that for long."""
        parts = urlsplit(self.url)
        if parts.scheme != "sqlite":
            return False
        return await asyncio.to_thread(_is_file_locked, parts.path.removeprefix("/"))

    async def states(self) -> dict[str, str]:
        """Return the state of each workflow."""
        rows = await self.query("SELECT workflow_id, state FROM asgi_durable_workflows")
        return dict(rows)  # type: ignore[arg-type]

    async def effects(self) -> Counter[str]:
        """Return how often each row was inserted."""
        return Counter(name for (name,) in await self.query("SELECT name FROM effects"))

    async def note_recorded(self) -> None:
        """Keep in mind which steps are recorded: none of them may run from now on."""
        rows = await self.query("SELECT workflow_id, step_number FROM asgi_durable_steps")
        counts = Counter((entry.workflow_id, entry.step) for entry in self.ledger())
        for workflow_id, step in rows:
            self._recorded.setdefault((workflow_id, step), counts[workflow_id, step])

    def repeated_steps(self) -> list[tuple[str, int]]:
        """Return the steps that have run although they were recorded."""
        counts = Counter((entry.workflow_id, entry.step) for entry in self.ledger())
        return [step for step, count in self._recorded.items() if counts[step] != count]

    async def takeovers(self) -> list[Takeover]:
        """Return the functions that continued in another process after theirs had ended.

        Requests are left out: they wait for the retries of their clients.
        """
        by_workflow: dict[str, list[Entry]] = {}
        for entry in self.ledger():
            by_workflow.setdefault(entry.workflow_id, []).append(entry)
        functions = await self.query(
            "SELECT workflow_id FROM asgi_durable_workflows WHERE fingerprint IS NULL"
        )
        return [
            Takeover(after.workflow_id, after.at - self.ends[before.pid])
            for (workflow_id,) in functions
            for before, after in itertools.pairwise(by_workflow.get(workflow_id, []))
            if before.pid != after.pid and before.pid in self.ends
        ]

    def _server(self, name: str) -> Server:
        folder = self._folder / name
        folder.mkdir()
        return Server(
            folder,
            "counting_service:app",
            app_dir=CRASH_PROGRAMS,
            environment=self._environment,
            arguments=self._arguments,
        )


async def until(
    condition: Callable[[], Awaitable[T]], *, seconds: float = GIVE_UP_AFTER_SECONDS
) -> T:
    """Call a function until its result is true, and return it."""
    async with asyncio.timeout(seconds):
        while not (answer := await condition()):
            await asyncio.sleep(POLL_SECONDS)
        return answer


async def post_anywhere(
    client: httpx.AsyncClient, urls: Iterable[str], path: str, *, key: str, **sent: Any
) -> httpx.Response:
    """Send a keyed POST to one server after the other until there is a response.

    The arguments are those of the client.
    """
    async with asyncio.timeout(GIVE_UP_AFTER_SECONDS):
        for url in itertools.cycle(urls):
            try:
                headers = {"Idempotency-Key": key}
                response = await client.post(f"{url}{path}", headers=headers, **sent)
            except httpx.TransportError:
                pass
            else:
                if response.status_code not in RETRIED_STATUSES:
                    return response
            await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("cycles never end")


def new_seed() -> int:
    """Return a seed; it is shown where the test fails."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    return seed


def show(what: str, seconds: Sequence[float]) -> None:
    """Print how long something took; it is shown where the test fails."""
    if seconds:
        middle, longest = statistics.median(seconds), max(seconds)
        print(f"{what}: {len(seconds)} times, median {middle:.2f} s, longest {longest:.2f} s")  # noqa: T201


def _is_file_locked(path: str) -> bool:
    connection = sqlite3.connect(path, timeout=0.5, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


def _query_file(path: str, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path, timeout=30.0)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()
