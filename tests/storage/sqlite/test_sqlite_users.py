"""The small files beside a SQLite file, if a process has no right to delete or read them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.paths import TESTS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders have no modes there")

TIMEOUT_SECONDS = 60

PROGRAM = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from asgi_durable.storage.protocol import Runnable
from asgi_durable.storage.sqlite import SQLiteStorage
from asgi_durable.storage.sqlite.locks import ProcessLock
from asgi_durable.storage.writes import StartWorkflow
from support.records import workflow
import aiosqlite, sqlalchemy.dialects.sqlite.aiosqlite

# The superuser may do everything: become somebody else, with all modules loaded.
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
file, executor, part = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
RUNNABLE = Runnable(names=frozenset({"work"}))

async def wait_for_line(text):
    print(text, flush=True)
    sys.stdin.readline()

async def main():
    storage = SQLiteStorage(f"sqlite:///{file}")
    await storage.open()
    await storage.register(executor, lease_seconds=600.0, on_message=lambda _: None)
    await {"own": own, "take": take}[part](storage)
    await storage.retire(executor)
    await storage.close()
    print("stopped", flush=True)

async def own(storage):
    await storage.commit([StartWorkflow(workflow("w", executor_id=executor))])
    await wait_for_line("ready")

async def take(storage):
    beat = await storage.beat(executor, lease_seconds=600.0, runnable=RUNNABLE)
    await wait_for_line("sees orphans" if beat.has_orphans else "ready")
    while not beat.has_orphans:
        beat = await storage.beat(executor, lease_seconds=600.0, runnable=RUNNABLE)
    taken = await storage.take_over(executor, runnable=RUNNABLE, limit=9, suspects=False)
    print([each.workflow.workflow_id for each in taken], flush=True)

if part == "peek":
    print(ProcessLock(file, database=file).is_held())
else:
    asyncio.run(main())
"""


@contextmanager
def process(file: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program as an ordinary user; kill it at the end."""
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", PROGRAM, str(file), *arguments]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as started:
        try:
            yield started
        finally:
            started.kill()


def lines_until(started: subprocess.Popen[Any], last: str) -> Sequence[str]:
    """Wait for a line."""
    lines = []
    assert started.stdout is not None
    for line in started.stdout:
        lines.append(line.strip())
        if lines[-1] == last:
            return lines
    message = f"it has ended after {lines}"
    raise AssertionError(message)


def send_line(started: subprocess.Popen[Any]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user may write to, during the test."""
    with tempfile.TemporaryDirectory() as outer:
        Path(outer).chmod(0o755)
        inner = Path(outer) / "data"
        inner.mkdir()
        inner.chmod(0o777)
        yield inner
        inner.chmod(0o777)


def test_a_lock_file_that_cannot_be_deleted_breaks_no_stop(folder: Path) -> None:
    with process(folder / "a.db", "one", "own") as one:
        lines_until(one, "ready")
        folder.chmod(0o555)
        send_line(one)
        assert lines_until(one, "stopped") == ["stopped"]
        assert one.wait(TIMEOUT_SECONDS) == 0

    assert (folder / "a.db-executor-one").exists()


def test_a_lock_file_that_cannot_be_deleted_breaks_no_takeover(folder: Path) -> None:
    file = folder / "a.db"
    with process(file, "one", "own") as one, process(file, "other", "take") as other:
        lines_until(one, "ready")
        lines_until(other, "ready")
        folder.chmod(0o555)
        one.kill()
        one.wait(TIMEOUT_SECONDS)
        send_line(other)
        assert lines_until(other, "stopped") == ["['w']", "stopped"]
        assert other.wait(TIMEOUT_SECONDS) == 0

    assert (folder / "a.db-executor-one").exists()


@pytest.mark.parametrize(
    ("mode", "alive", "expected"),
    [(0o444, True, "True"), (0o444, False, "False"), (0o000, True, "True"), (0o000, False, "True")],
)
def test_a_lock_is_seen_by_who_may_only_read_it_and_assumed_by_who_may_not(
    folder: Path, mode: int, alive: bool, expected: str
) -> None:
    with process(folder / "a.db", "one", "own") as one:
        lines_until(one, "ready")
        lock = folder / "a.db-executor-one"
        lock.chmod(mode)
        if not alive:
            one.kill()
            one.wait(TIMEOUT_SECONDS)
        with process(lock, "-", "peek") as peeking:
            assert lines_until(peeking, expected) == [expected]


def test_a_lock_may_be_looked_at_by_whoever_may_write_to_the_database(folder: Path) -> None:
    file = folder / "a.db"
    with process(file, "one", "own") as one:
        lines_until(one, "ready")
        send_line(one)
        lines_until(one, "stopped")
    file.chmod(0o660)

    with process(file, "two", "own") as two:
        lines_until(two, "ready")
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}

    assert modes["a.db-executor-two"] == 0o660
