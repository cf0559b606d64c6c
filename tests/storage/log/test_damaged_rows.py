"""A damaged row is ignored and logged, and other workflows are not affected."""

from __future__ import annotations

import logging
import sqlite3
from urllib.parse import urlsplit

import pytest
from support.databases.postgres import fetch
from support.databases.storages import (
    Adapter,
    OpenStorage,
    beat,
    enter,
    is_alive,
    kinds,
    take_over,
    until,
)
from support.records import EXECUTOR, OTHER, record, request, response, step, success, workflow

from asgi_durable import StorageError
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.writes import ClaimRequest, OutcomeKind, StartWorkflow

pytestmark = pytest.mark.anyio

DONE = OutcomeKind.DONE
WORKFLOWS, STEPS = "asgi_durable_workflows", "asgi_durable_steps"
EXECUTORS, RESPONSES = "asgi_durable_executors", "asgi_durable_responses"
NO_TEXT = "CAST(x'ff' AS TEXT)"
FIRST = f"UPDATE {WORKFLOWS} SET {{}} WHERE workflow_id = 'w1'"
LEFT = f"UPDATE {EXECUTORS} SET {{}} WHERE executor_id = '{OTHER}'"
BOGUS_CHILD = f"UPDATE {WORKFLOWS} SET state = 'BOGUS' WHERE workflow_id = 'child'"


async def execute(url: str, statement: str) -> None:
    """Change a database by a statement that damages it."""
    if url.startswith("sqlite"):
        with sqlite3.connect(urlsplit(url).path[1:]) as connection:
            connection.execute(statement)
        connection.close()
    else:
        await fetch(url, statement)


@pytest.fixture
def url(new_storage: Adapter) -> str:
    return new_storage.url


@pytest.fixture
def on_sqlite(new_storage: Adapter) -> None:
    if not new_storage.one_writer:
        pytest.skip("the database checks the types of values")


@pytest.fixture
def on_postgres(new_storage: Adapter) -> None:
    if new_storage.one_writer:
        pytest.skip("numbers are longer there")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("Set aside")]


async def leave_three(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow(f"w{n}", executor_id=OTHER)) for n in (1, 2, 3)])
    await storage.retire(OTHER)


@pytest.mark.usefixtures("on_sqlite")
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("attempts = 'many'", "attempts is of the type str"),
        ("created_at_us = 1.5", "created_at_us is of the type float"),
        ("input = 'text'", "input is of the type str"),
        (f"request_id = {NO_TEXT}", "request_id is of the type bytes"),
        (f"parent_id = {NO_TEXT}", "parent_id is of the type bytes"),
        ("awaited = 'x'", "awaited is of the type str"),
    ],
)
async def test_a_workflow_with_a_damaged_value_is_left_and_all_others_are_taken_over(
    storage: Storage, other: Storage, url: str, caplog, damage: str, named: str
) -> None:
    await leave_three(other)
    await execute(url, FIRST.format(damage))

    assert (await beat(storage)).has_orphans
    assert await take_over(storage, limit=2) == ["w2"]
    assert await take_over(storage) == ["w3"]
    assert await take_over(storage) == []
    assert not (await beat(storage)).has_orphans
    (line,) = lines(caplog)
    assert "'w1'" in line
    assert WORKFLOWS in line
    assert named in line
    for _ in range(2):
        with pytest.raises(StorageError, match="'w1'"):
            await storage.get_workflow("w1")
    assert len(lines(caplog)) == 1


@pytest.mark.usefixtures("on_sqlite")
@pytest.mark.parametrize("damage", ["x'77'", NO_TEXT])
async def test_a_workflow_whose_id_is_no_text_is_left_and_all_others_are_taken_over(
    storage: Storage, other: Storage, url: str, damage: str
) -> None:
    await leave_three(other)
    await execute(url, FIRST.format(f"workflow_id = {damage}"))

    assert await take_over(storage) == ["w2", "w3"]
    assert await storage.list_pending(EXECUTOR, after="", limit=9) == ["w2", "w3"]


@pytest.mark.usefixtures("on_postgres")
@pytest.mark.parametrize(
    "damage",
    [
        FIRST.format(f"attempts = {2**31 - 1}"),
        FIRST.format(f"crashes = {2**31 - 1}"),
        LEFT.format(f"lease_expires_at_us = {-(2**63)}"),
    ],
)
async def test_a_number_that_cannot_grow_stops_no_takeover(
    storage: Storage, other: Storage, url: str, damage: str
) -> None:
    await leave_three(other)
    await execute(url, damage)

    taken = {*await take_over(storage), *await take_over(storage, suspects=True)}
    assert taken == {"w1", "w2", "w3"}


@pytest.mark.usefixtures("on_sqlite")
@pytest.mark.parametrize(
    "damage",
    [
        "executor_id = 'a' || char(0) || 'b'",
        f"executor_id = '{'long' * 100}'",
        "executor_id = 'a/../b'",
        f"executor_id = {NO_TEXT}",
        "executor_id = x'77'",
        "lease_expires_at_us = 'soon'",
        f"state = {NO_TEXT}",
    ],
)
async def test_a_damaged_executor_stops_nobody(
    storage: Storage, open_storage: OpenStorage, url: str, damage: str
) -> None:
    await (await open_storage(OTHER)).commit([StartWorkflow(workflow("w", executor_id=OTHER))])
    third = await open_storage("executor-3")
    await leave(third, "executor-3")
    await execute(url, LEFT.format(damage))

    assert await is_alive(storage)
    assert await kinds(storage, StartWorkflow(workflow("mine"))) == [DONE]

    async def is_taken() -> bool:
        await beat(storage)
        return "left" in await take_over(storage)

    await until(is_taken)
    assert await is_alive(storage)


async def leave(storage: Storage, executor_id: str) -> None:
    await storage.commit([StartWorkflow(workflow("left", executor_id=executor_id))])
    await storage.retire(executor_id)


@pytest.mark.usefixtures("on_sqlite")
async def test_workflows_of_an_executor_whose_id_is_no_files_name_are_taken_over(
    storage: Storage, url: str
) -> None:
    await enter(storage, "gone")
    await storage.commit([StartWorkflow(workflow("w", executor_id="gone"))])
    for table in (EXECUTORS, WORKFLOWS):
        with_nul = "executor_id = 'a' || char(0) || 'b'"
        await execute(url, f"UPDATE {table} SET {with_nul} WHERE executor_id = 'gone'")

    async def is_taken() -> bool:
        await beat(storage)
        return await take_over(storage) == ["w"]

    await until(is_taken)


async def test_a_log_with_a_damaged_row_says_so_and_the_others_are_whole(
    storage: Storage, url: str, caplog
) -> None:
    child = workflow("child", parent_id="w1", parent_step=0)
    starts = [StartWorkflow(one) for one in (workflow("w1"), workflow("w2"), child)]
    await storage.commit([*starts, record(step("w2"))])
    await execute(url, BOGUS_CHILD)

    for _ in range(2):
        first, second = sorted(
            await storage.load_runs(["w1", "w2"]), key=lambda run: run.workflow.workflow_id
        )
        assert (first.damage is None, second.damage) == (False, None)
        assert second.steps == (step("w2"),)
        with pytest.raises(StorageError, match="BOGUS"):
            first.sound()
    assert await storage.load_runs(["child"]) == []
    (line,) = lines(caplog)
    assert "'child'" in line
    for read in (storage.get_workflow, storage.get_progress):
        with pytest.raises(StorageError, match="BOGUS"):
            await read("child")
    assert caplog.records[0].levelno == logging.ERROR


@pytest.mark.usefixtures("on_sqlite")
async def test_a_damaged_step_or_answer_is_told_to_who_reads_it(storage: Storage, url: str) -> None:
    await storage.commit([StartWorkflow(workflow("w")), record(step("w"))])
    await storage.commit([ClaimRequest(request("r"))])
    await storage.commit([success("r", response=response("r"))])
    await execute(url, f"UPDATE {STEPS} SET output = 'text'")
    await execute(url, f"UPDATE {RESPONSES} SET headers = 1")

    (run,) = await storage.load_runs(["w"])
    with pytest.raises(StorageError, match="output"):
        run.sound()
    with pytest.raises(StorageError, match="headers"):
        await storage.get_response("r")


async def test_who_meets_a_damaged_row_in_a_commit_is_refused_alone(
    storage: Storage, url: str
) -> None:
    await storage.commit([StartWorkflow(workflow("child")), ClaimRequest(request("r"))])
    await execute(url, BOGUS_CHILD)
    await execute(url, f"UPDATE {WORKFLOWS} SET state = 'BOGUS' WHERE workflow_id = 'r'")

    batch = [
        StartWorkflow(workflow("new")),
        ClaimRequest(request("r", executor_id=EXECUTOR)),
        StartWorkflow(workflow("child", name="another")),
        record(step("new")),
    ]
    rejected = OutcomeKind.REJECTED
    assert await kinds(storage, *batch) == [DONE, rejected, rejected, DONE]


@pytest.mark.usefixtures("on_sqlite")
@pytest.mark.parametrize("damage", ["x'77'", NO_TEXT])
async def test_a_request_whose_id_is_no_text_keeps_no_other_from_being_forgotten(
    storage: Storage, url: str, damage: str
) -> None:
    for name in ("r1", "r2"):
        await storage.commit([ClaimRequest(request(name))])
        await storage.commit([success(name, response=response(name))])
    for table in (WORKFLOWS, RESPONSES):
        await execute(url, f"UPDATE {table} SET workflow_id = {damage} WHERE workflow_id = 'r1'")

    await storage.forget_expired(2**60, abandoned_before_us=0, limit=9)

    assert await storage.get_workflow("r2") is None
