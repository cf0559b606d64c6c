"""A workflow whose log cannot be read is not run again; all others are."""

from __future__ import annotations

import sqlite3
from urllib.parse import urlsplit

import pytest
from support.databases.postgres import fetch
from support.interruption import Gate

from asgi_durable import Durable, StorageError

pytestmark = pytest.mark.anyio

CHILD_OF_BAD = (
    "UPDATE asgi_durable_workflows SET state = 'BOGUS' "
    "WHERE parent_id = 'bad' AND name LIKE '%charge%'"
)


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


async def damage(url: str) -> None:
    if url.startswith("sqlite"):
        with sqlite3.connect(urlsplit(url).path[1:]) as connection:
            connection.execute(CHILD_OF_BAD)
        connection.close()
    else:
        await fetch(url, CHILD_OF_BAD)


async def test_a_workflow_with_a_damaged_log_is_set_aside_and_the_others_go_on(
    durable: Durable, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gates, charged = {"bad": Gate(), "good": Gate()}, []

    @durable.workflow
    async def charge(name: str) -> None:
        charged.append(name)

    @durable.step
    async def wait(name: str) -> None:
        await gates[name].wait()

    @durable.workflow
    async def work(name: str) -> str:
        await charge(name)
        await wait(name)
        return name

    for name, gate in gates.items():
        await durable.options(workflow_id=name).start_workflow(work, name)
        await gate.reached.wait()
    await durable.engine.stop()
    await damage(url)
    for gate in gates.values():
        gate.open()

    async with durable:
        assert await (await durable.retrieve_workflow("good")).get_result(timeout=60) == "good"
        bad = await durable.retrieve_workflow("bad")
        with pytest.raises(StorageError, match="BOGUS"):
            await bad.get_result(timeout=60)
        # A call with the same id does not run it either.
        with pytest.raises(StorageError, match="BOGUS"):
            await durable.options(workflow_id="bad").run_workflow(work, "bad")
        assert (await bad.get_status()).status == "PENDING"
    assert charged == ["bad", "good"]
    assert len([r for r in caplog.records if r.getMessage().startswith("Set aside")]) == 1
