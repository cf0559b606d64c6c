"""The contract of ``Secrets``, and the migration that adds them."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest
from support.databases.former_database import HOUR_US, create_version_1, execute, finished
from support.databases.storages import SQLITE, Adapter

from asgi_durable import StorageError
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.records import StoredSecret

pytestmark = pytest.mark.anyio

DAY_US = 24 * HOUR_US


async def secret_of(new_storage: Adapter) -> StoredSecret:
    storage = new_storage()
    await storage.open()
    try:
        return await storage.read_secret()
    finally:
        await storage.close()


async def test_a_new_database_has_a_secret_that_every_process_reads(
    storage: Storage, other: Storage, new_storage: Adapter
) -> None:
    made = await storage.read_secret()

    assert len(made.value) == 32
    assert not made.added_later
    assert await other.read_secret() == made
    assert await secret_of(new_storage) == made


@pytest.mark.parametrize("is_old", [False, True])
async def test_one_secret_is_made_however_many_start_at_once(
    new_storage: Adapter, *, is_old: bool
) -> None:
    if is_old:
        await create_version_1(new_storage.url)

    made = await asyncio.gather(*(secret_of(new_storage) for _ in range(6)))

    assert len({one.value for one in made}) == 1
    assert all(one.added_later is is_old for one in made)


async def test_two_databases_have_two_secrets(tmp_path: Path, new_storage: Adapter) -> None:
    other = Adapter(url=f"sqlite:///{tmp_path}/other.db", **SQLITE)

    assert await secret_of(other) != await secret_of(new_storage)


async def test_an_older_database_keeps_its_rows_and_says_that_it_has_them(
    new_storage: Adapter,
) -> None:
    workflow, answer = finished("r" * 42)
    await create_version_1(new_storage.url, (workflow, answer))

    storage = new_storage()
    await storage.open()

    assert (await storage.read_secret()).added_later
    assert await storage.get_workflow(workflow.workflow_id) == workflow
    assert await storage.get_response(workflow.workflow_id) == answer
    await storage.close()


async def make_older(url: str, microseconds: int) -> None:
    await execute(
        url, f"UPDATE asgi_durable_secrets SET created_at_us = created_at_us - {microseconds}"
    )


async def test_it_says_so_until_no_request_of_that_time_is_left(new_storage: Adapter) -> None:
    workflow, answer = finished("r" * 42)
    await create_version_1(new_storage.url, (workflow, answer))
    first = await secret_of(new_storage)

    await execute(new_storage.url, "DELETE FROM asgi_durable_workflows")
    # Processes of the former version may still run beside this one.
    assert (await secret_of(new_storage)).added_later
    await make_older(new_storage.url, DAY_US)
    later = await secret_of(new_storage)

    assert first.added_later
    assert not later.added_later
    assert later.value == first.value


async def test_a_request_that_a_former_process_claimed_beside_this_one_counts(
    new_storage: Adapter,
) -> None:
    await create_version_1(new_storage.url, finished("r" * 42))
    await secret_of(new_storage)
    await make_older(new_storage.url, 30 * DAY_US)
    claimed_at_us = time.time_ns() // 1000 - 30 * DAY_US + HOUR_US
    await execute(
        new_storage.url, f"UPDATE asgi_durable_workflows SET created_at_us = {claimed_at_us}"
    )

    assert (await secret_of(new_storage)).added_later


async def test_a_secret_that_was_deleted_is_made_anew_at_the_next_start(
    storage: Storage, new_storage: Adapter
) -> None:
    before = await storage.read_secret()
    await execute(new_storage.url, "DELETE FROM asgi_durable_secrets")

    with pytest.raises(StorageError, match="asgi_durable_secrets"):
        await storage.read_secret()
    after = await secret_of(new_storage)

    assert after.value != before.value


async def test_it_is_shown_nowhere(new_storage: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    made = await secret_of(new_storage)

    for form in (made.value.hex(), repr(made.value)):
        assert form not in caplog.text
        assert form not in repr(made)
