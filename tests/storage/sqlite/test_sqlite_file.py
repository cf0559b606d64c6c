"""SQLite files in various states: missing, damaged, read-only, too new, in use."""

from __future__ import annotations

import asyncio
import ntpath
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from asgi_durable import Durable, DurableUsageError, StorageError
from asgi_durable.storage.sqlite import SQLiteStorage
from asgi_durable.storage.sqlite.file import SQLiteFile
from asgi_durable.storage.urls import fixed_url, sqlite_file

pytestmark = pytest.mark.anyio


async def open_and_close(url: str) -> None:
    storage = SQLiteStorage(url)
    await storage.open()
    await storage.close()


def pragma(path: Path, name: str) -> object:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///orders.db", "/srv/orders.db"),
        ("sqlite:///../a/./orders.db", "/a/orders.db"),
        ("sqlite:////data/orders.db", "/data/orders.db"),
        ("sqlite+aiosqlite:////data/orders.db", "/data/orders.db"),
        ("SQLite+pysqlite:////data/orders.db", "/data/orders.db"),
        ("sqlite:////data/a@b:c.db?synchronous=FULL", "/data/a@b:c.db"),
        ("sqlite:////home/me/C#/orders.db", "/home/me/C#/orders.db"),
        ("sqlite:////data/with%20space%23%3F%41%zz.db", "/data/with space#?A%zz.db"),
        ("sqlite:////data/100%.db", "/data/100%.db"),
    ],
)
def test_a_url_names_the_file_that_it_names_to_sqlalchemy(
    monkeypatch: pytest.MonkeyPatch, url: str, path: str
) -> None:
    monkeypatch.chdir("/srv")
    read = sa.make_url(url.lower().partition("+")[0].partition(":")[0] + url[url.index("://") :])

    assert SQLiteFile.from_url(url).path == Path(path)
    assert os.path.normpath(Path("/srv", read.database or "")) == path


@pytest.mark.parametrize(
    ("url", "fixed"),
    [
        (
            "sqlite:///orders.db?synchronous=FULL",
            r"sqlite:///D:\my%20app/orders.db?synchronous=FULL",
        ),
        ("sqlite:///C:/data/orders.db", "sqlite:///C:/data/orders.db"),
        (r"sqlite:///C:\data\orders.db", r"sqlite:///C:\data\orders.db"),
        ("sqlite://", "sqlite://"),
    ],
)
def test_files_on_windows_have_drives(url: str, fixed: str) -> None:
    assert fixed_url(url, r"D:\my app", ntpath) == fixed
    file, _ = sqlite_file(fixed)
    assert not file or ntpath.isabs(file)


def test_the_settings_are_in_the_url() -> None:
    file = SQLiteFile.from_url("sqlite:///a.db?synchronous=normal&busy_timeout=0.5")

    assert (file.synchronous, file.busy_timeout_seconds) == ("NORMAL", 0.5)
    assert SQLiteFile.from_url("sqlite:///a.db").synchronous == "FULL"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("sqlite:///", "'sqlite:///'.*sqlite:////srv"),
        ("sqlite:////", "'sqlite:////'.*sqlite:////srv"),
        ("sqlite:////data/", "'sqlite:////data/'.*sqlite:////srv"),
        ("sqlite:/x.db", "'sqlite:/x.db'.*sqlite:////x.db"),
        ("sqlite:x.db", "'sqlite:x.db'.*sqlite:///x.db"),
        ("sqlite://host/a.db", "'sqlite://host/a.db'.*sqlite:////srv"),
        ("sqlite:///a%00.db", "'sqlite:///a%00.db'.*sqlite:////srv"),
        ("sqlite:///a.db?synchronous=sometimes", "EXTRA, FULL.*got 'sometimes'"),
        ("sqlite:///a.db?busy_timeout=long", "busy_timeout=5; got 'long'"),
        ("sqlite:///a.db?busy_timeout=nan", "busy_timeout=5; got 'nan'"),
        ("sqlite:///a.db?busy_timeout=-1", "busy_timeout=5; got '-1'"),
        ("sqlite:///a.db?busy_timeout=inf", "busy_timeout=5; got 'inf'"),
        ("sqlite:///a.db?busy_timeout=", "busy_timeout=5; got ''"),
        ("sqlite:///a.db?busy_timeout=5#", "busy_timeout=5; got '5#'"),
        ("sqlite:///a.db?speed=11", "'speed'; there are synchronous and busy_timeout"),
    ],
)
def test_a_url_that_is_not_understood_is_refused_with_one_that_is(url: str, named: str) -> None:
    with pytest.raises(DurableUsageError, match=named):
        SQLiteFile.from_url(url)


async def test_a_file_that_an_earlier_version_made_of_a_url_is_not_forgotten(
    tmp_path: Path,
) -> None:
    (tmp_path / "C#").mkdir()
    await open_and_close(f"sqlite:///{tmp_path}/C")

    with pytest.raises(StorageError, match=r"C#/orders\.db does not exist, but .*/C, which"):
        await open_and_close(f"sqlite:///{tmp_path}/C#/orders.db")

    (tmp_path / "C").rename(tmp_path / "C#" / "orders.db")
    await open_and_close(f"sqlite:///{tmp_path}/C#/orders.db")


@pytest.mark.parametrize(("level", "number"), [("FULL", 2), ("NORMAL", 1)])
async def test_the_log_is_written_ahead_and_synchronised_as_set(
    tmp_path: Path, level: str, number: int
) -> None:
    storage = SQLiteStorage(f"sqlite:///{tmp_path}/a.db?synchronous={level}")
    await storage.open()
    cursor = storage._opened.writer.connection  # type: ignore[union-attr]

    found = [cursor.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous")]
    await storage.close()

    assert found == ["wal", number]


async def test_the_applications_transactions_are_synchronised_as_well(tmp_path: Path) -> None:
    storage = SQLiteStorage(f"sqlite:///{tmp_path}/a.db")
    await storage.open()
    async with storage.transaction(None) as transaction:
        result = await transaction.session.execute(sa.text("PRAGMA synchronous"))
        level = result.scalar_one()
    await storage.close()

    assert level == 2


@pytest.mark.parametrize(("platform", "is_on"), [("darwin", 1), ("linux", 0), ("win32", 0)])
def test_a_disks_own_cache_is_flushed_where_fsync_does_not(platform: str, is_on: int) -> None:
    file = SQLiteFile.from_url("sqlite:///a.db")
    connection = sqlite3.connect(":memory:")
    for setting in file.settings(platform):
        connection.execute(f"PRAGMA {setting}")

    names = ("fullfsync", "checkpoint_fullfsync")
    found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    connection.close()

    assert found == [is_on, is_on]


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere.*does not exist"):
        await open_and_close(f"sqlite:///{tmp_path}/nowhere/a.db")


async def test_a_file_that_is_no_database_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, and no database at all\n" * 100)
    before = path.read_bytes()

    with pytest.raises(StorageError, match=r"notes\.txt: file is not a database"):
        await open_and_close(f"sqlite:///{path}")

    assert path.read_bytes() == before


async def test_a_folder_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()

    with pytest.raises(StorageError, match=r"folder\.db"):
        await open_and_close(f"sqlite:///{tmp_path}/folder.db")


async def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await open_and_close(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE asgi_durable_schema SET version = 99")
    connection.close()

    with pytest.raises(StorageError, match=r"a\.db.*newer version of asgi-durable.*99"):
        await open_and_close(f"sqlite:///{path}")


async def test_the_applications_own_tables_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.execute("PRAGMA user_version = 7")
    connection.close()

    await open_and_close(f"sqlite:///{path}")

    assert pragma(path, "user_version") == 7
    assert pragma(path, "integrity_check") == "ok"


async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await open_and_close(f"sqlite:///{path}")
    data = bytearray(path.read_bytes())
    data[100:8192] = os.urandom(8092)
    path.write_bytes(bytes(data))

    with pytest.raises(StorageError, match=r"a\.db"):
        await open_and_close(f"sqlite:///{path}")


async def test_several_instances_can_share_a_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"

    async with Durable(url) as one, Durable(url) as other:

        @one.workflow(name="work")
        async def work() -> str:
            return "done"

        assert await one.options(workflow_id="w").run_workflow(work) == "done"
        handle = await other.retrieve_workflow("w")
        assert await handle.get_result(timeout=60.0) == "done"


@pytest.mark.parametrize("number", range(20))
async def test_an_empty_file_can_be_opened_by_many_at_once(tmp_path: Path, number: int) -> None:
    storages = [SQLiteStorage(f"sqlite:///{tmp_path}/a.db") for _ in range(8)]

    results = await asyncio.gather(*(s.open() for s in storages), return_exceptions=True)
    await asyncio.gather(*(storage.close() for storage in storages))

    assert results == [None] * 8


READ_ONLY = """
import asyncio, os, sys
from asgi_durable import StorageError
from asgi_durable.storage.sqlite import SQLiteStorage
import aiosqlite, sqlalchemy.dialects.sqlite.aiosqlite
if os.geteuid() == 0:
    # The superuser may write everything: become somebody else, with all modules loaded.
    os.setgroups([]); os.setegid(65534); os.seteuid(65534)
try:
    asyncio.run(SQLiteStorage(sys.argv[1]).open())
except StorageError as error:
    print(error)
"""


@pytest.fixture
def folder_for_all() -> Iterator[Path]:
    """A folder that other users can reach, unlike that of ``tmp_path``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path
        path.chmod(0o755)


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_database_that_may_not_be_written_is_named(folder_for_all: Path, what: str) -> None:
    folder = folder_for_all
    path = folder / "a.db"
    await open_and_close(f"sqlite:///{path}")
    path.chmod(0o444 if what == "file" else 0o666)
    folder.chmod(0o777 if what == "file" else 0o555)

    result = subprocess.run(
        [sys.executable, "-c", READ_ONLY, f"sqlite:///{path}"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "a.db" in result.stdout, result.stderr


FULL_DISK = """
import asyncio, resource, sys
from asgi_durable import StorageError
from asgi_durable.storage.sqlite import SQLiteStorage
# A limit on the size of files: beyond it writing fails, as on a disk that is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    asyncio.run(SQLiteStorage(sys.argv[1]).open())
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [1000, 20_000])
async def test_a_disk_without_room_is_named_and_nothing_is_half_written(
    tmp_path: Path, limit: int
) -> None:
    path = tmp_path / "a.db"

    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, f"sqlite:///{path}", str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "a.db" in result.stdout, result.stderr
    await open_and_close(f"sqlite:///{path}")
    assert pragma(path, "integrity_check") == "ok"
