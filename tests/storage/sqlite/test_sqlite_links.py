"""SQLite files under several names: links, working directories, other users."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from asgi_durable import Durable, DurableUsageError, StorageError
from asgi_durable.storage.sqlite import SQLiteStorage
from asgi_durable.storage.sqlite.file import CHECKPOINTS_ITSELF, SQLiteFile

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 60

# Prints that it has begun, and continues after a line of input; each beginning is a line.
PROGRAM = """
import asyncio, sys
from asgi_durable import Durable
from pathlib import Path

url, folder = sys.argv[1], Path(sys.argv[2])
durable = Durable(url)

@durable.step(retry=None)
async def work():
    with (folder / "ledger").open("a") as ledger:
        print("begun", file=ledger)
    while not (folder / "gate").exists():
        await asyncio.sleep(0.01)
    return "done"

@durable.workflow
async def flow():
    return await work()

async def main():
    async with durable:
        if sys.argv[3] == "start":
            await durable.options(workflow_id="w").start_workflow(flow)
        print("started", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        handle = await durable.retrieve_workflow("w")
        print(await handle.get_result(timeout=60), flush=True)

asyncio.run(main())
"""


class Process:
    """A process with an engine, which ends after a line of input."""

    def __init__(self, file: Path, folder: Path, role: str) -> None:
        command = [sys.executable, "-c", PROGRAM, f"sqlite:///{file}", str(folder), role]
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def wait_for(self, line: str) -> None:
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == f"{line}\n"

    def send_line(self) -> None:
        self.popen.communicate("\n", timeout=TIMEOUT_SECONDS)

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@contextmanager
def processes(*arguments: tuple[Path, Path, str]) -> Iterator[list[Process]]:
    """Start processes, one after the other, and kill them at the end."""
    started: list[Process] = []
    try:
        for argument in arguments:
            started.append(Process(*argument))
            started[-1].wait_for("started")
        yield started
    finally:
        for process in started:
            process.end()


def executors(file: Path) -> list[str]:
    with sqlite3.connect(file) as connection:
        rows = connection.execute("SELECT state FROM asgi_durable_executors").fetchall()
    connection.close()
    return [row[0] for row in rows]


def leases(data: Path) -> list[tuple[str, int]]:
    found = data.glob("orders.db-executor-*")
    return [(path.name, path.stat().st_mtime_ns) for path in found]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def until_both_have_looked_around(data: Path) -> None:
    """Wait until two executors have renewed their leases a few times."""
    seen: dict[str, set[int]] = {}
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while sorted(len(times) >= 6 for times in seen.values()) != [True, True]:
            for name, time in leases(data):
                seen.setdefault(name, set()).add(time)
            await asyncio.sleep(0.01)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of the database; links point to it."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def linked(tmp_path: Path, data: Path, name: str, how: str) -> Path:
    """Return a link to the file ``orders.db``, as a release of a deployment has one."""
    if how == "folder":
        (tmp_path / name).symlink_to(data)
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "orders.db").symlink_to(data / "orders.db")
    return tmp_path / name / "orders.db"


@pytest.mark.parametrize("how", ["file", "folder"])
async def test_two_processes_on_two_links_know_of_each_other(
    tmp_path: Path, data: Path, how: str
) -> None:
    one, other = (linked(tmp_path, data, name, how) for name in ("release-1", "release-2"))

    with processes((one, tmp_path, "start"), (other, tmp_path, "look")) as (first, second):
        await until_both_have_looked_around(data)
        assert executors(data / "orders.db") == ["ALIVE", "ALIVE"]
        (tmp_path / "gate").touch()
        second.send_line()
        first.send_line()

    assert (tmp_path / "ledger").read_text() == "begun\n"


async def test_all_that_belongs_to_a_linked_file_lies_beside_it(tmp_path: Path, data: Path) -> None:
    link = linked(tmp_path, data, "release", "file")
    storage = SQLiteStorage(f"sqlite:///{link}")
    await storage.open()
    await storage.register("e", lease_seconds=60.0, on_message=lambda _: None)
    in_data, in_release = names(data), names(link.parent)
    await storage.close()

    assert {"orders.db", "orders.db-wal", "orders.db-executor-e"} <= in_data
    assert in_release == {"orders.db"}


@pytest.mark.skipif(CHECKPOINTS_ITSELF, reason="this SQLite does it by itself")
async def test_a_file_behind_a_link_is_checkpointed(tmp_path: Path, data: Path) -> None:
    durable = Durable(f"sqlite:///{linked(tmp_path, data, 'release', 'file')}")

    @durable.workflow
    async def work() -> None: ...

    async with durable:
        before = (data / "orders.db").stat().st_size
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (data / "orders.db").stat().st_size <= before:
                await work()


async def test_a_file_with_two_hard_links_is_refused(data: Path) -> None:
    file = data / "orders.db"
    file.touch()
    os.link(file, data / "other.db")

    for url in (f"sqlite:///{file}", f"sqlite:///{data}/other.db"):
        with pytest.raises(StorageError, match=r"orders\.db has 2 names|other\.db has 2 names"):
            await SQLiteStorage(url).open()
    async with Durable("sqlite://") as durable:
        durable.application_url = f"sqlite:///{file}"
        with pytest.raises(StorageError, match="has 2 names"):
            await durable.engine._open_application().open()  # type: ignore[union-attr]


@pytest.mark.parametrize("two", [False, True])
async def test_a_relative_file_is_relative_to_where_the_instance_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two: bool
) -> None:
    folders = [tmp_path / name for name in ("C# and %?", "start", "later")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[0])
    durable = Durable("sqlite:///log.db", application_url="sqlite:///shop.db" if two else None)
    name = "shop.db" if two else "log.db"

    @durable.transaction
    async def create() -> None:
        await durable.session.execute(sa.text("CREATE TABLE orders (id INTEGER)"))

    @durable.transaction
    def save() -> int:
        durable.blocking.session.execute(sa.text("INSERT INTO orders VALUES (7)"))
        return durable.blocking.session.execute(sa.text("SELECT count(*) FROM orders")).scalar_one()

    @durable.workflow
    async def order() -> int:
        return await durable.run_step(save)

    monkeypatch.chdir(folders[1])
    async with durable:
        await create()
        monkeypatch.chdir(folders[2])
        assert await order() == 1
        assert await durable.run_step(save) == 2

    assert [sorted(path.name for path in folder.iterdir()) for folder in folders[1:]] == [[], []]
    with sqlite3.connect(folders[0] / name) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (2,)
    connection.close()


def test_a_working_directory_that_is_gone_matters_to_relative_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()

    Durable(f"sqlite:///{tmp_path}/a.db")
    Durable("sqlite://")
    durable = Durable("sqlite:///a.db")
    with pytest.raises(DurableUsageError, match="does not exist any more"):
        asyncio.run(durable.migrate())


async def test_two_urls_of_one_file_are_one_database(tmp_path: Path) -> None:
    urls = f"sqlite+aiosqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/a.db"

    assert Durable(urls[0], application_url=urls[1]).engine._open_application() is None


def test_the_file_of_an_url_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert SQLiteFile.from_url("sqlite:///asgi_durable.db").path == tmp_path / "asgi_durable.db"
