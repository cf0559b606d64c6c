"""``sqlite://``: a database that exists while an instance runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from asgi_durable import Durable, StorageError, WorkflowNotFoundError
from asgi_durable.storage.sqlite import SQLiteStorage
from asgi_durable.storage.sqlite.file import SQLiteFile

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
async def test_it_is_there_while_the_instance_runs_and_gone_after(folder: Path, url: str) -> None:
    durable = Durable(url)

    @durable.transaction
    async def save() -> int:
        await durable.session.execute(sa.text("CREATE TABLE orders (id INTEGER)"))
        await durable.session.execute(sa.text("INSERT INTO orders VALUES (7)"))
        return (await durable.session.execute(sa.text("SELECT id FROM orders"))).scalar_one()

    @durable.workflow
    async def order() -> int:
        return await save()

    async with durable:
        assert await durable.options(workflow_id="w").run_workflow(order) == 7
        assert names(folder) != []

    assert names(folder) == []
    async with durable:
        with pytest.raises(WorkflowNotFoundError):
            await durable.retrieve_workflow("w")


async def test_two_instances_have_nothing_in_common() -> None:
    one, other = Durable("sqlite://"), Durable("sqlite://")

    @one.workflow
    async def work() -> None: ...

    async with one, other:
        await one.options(workflow_id="w").run_workflow(work)
        with pytest.raises(WorkflowNotFoundError):
            await other.retrieve_workflow("w")


def test_any_number_of_event_loops_and_threads_share_it() -> None:
    durable = Durable("sqlite://")

    @durable.step
    async def double(number: int) -> int:
        return 2 * number

    @durable.transaction
    async def add(number: int) -> None:
        insert = sa.text("INSERT INTO numbers VALUES (:number)")
        await durable.session.execute(insert, {"number": number})

    @durable.workflow
    async def work(number: int) -> int:
        doubled = await double(number)
        await add(doubled)
        return doubled

    @durable.transaction
    async def create() -> None:
        await durable.session.execute(sa.text("CREATE TABLE numbers (number INTEGER)"))

    @durable.transaction
    async def total() -> int:
        numbers = sa.text("SELECT sum(number) FROM numbers")
        return (await durable.session.execute(numbers)).scalar_one()

    async def work_here(number: int) -> int:
        await durable.engine.ensure_started()
        return sum(await asyncio.gather(*(work(number) for _ in range(3))))

    async def begin() -> None:
        await durable.engine.ensure_started()
        await create()

    async def end() -> int:
        try:
            return await total()
        finally:
            await durable.engine.stop()

    asyncio.run(begin())
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda number: asyncio.run(work_here(number)), range(12)))

    assert results == [6 * number for number in range(12)]
    assert asyncio.run(end()) == sum(results)


def test_a_process_that_never_stops_it_leaves_nothing_behind(tmp_path: Path) -> None:
    script = """
import asyncio
from asgi_durable import Durable
durable = Durable("sqlite://")
@durable.workflow
async def work(): ...
async def main():
    await durable.engine.ensure_started()
    await work()
asyncio.run(main())
"""
    subprocess.run(
        [sys.executable, "-c", script], env={"TMPDIR": str(tmp_path)}, check=True, timeout=60
    )

    assert list(tmp_path.iterdir()) == []


async def test_an_opening_that_fails_leaves_nothing_behind(folder: Path) -> None:
    storage = SQLiteStorage("sqlite://")
    storage._file.path.write_bytes(b"no database " * 400)

    with pytest.raises(StorageError):
        await storage.open()

    # The thread that opened it cleans up, and no task waits for that.
    async with asyncio.timeout(60):
        while names(folder):
            await asyncio.sleep(0.01)


def test_it_waits_for_no_disk_unless_told_to() -> None:
    assert SQLiteFile.from_url("sqlite://").synchronous == "OFF"
    assert SQLiteFile.from_url("sqlite://?synchronous=FULL").synchronous == "FULL"
