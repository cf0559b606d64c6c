"""Logs of the former version: this version finishes their workflows and reads their values."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.asgi import Exchange, exchange, keyed
from support.databases.postgres import temporary_schema, with_schema
from support.executors import PATIENCE_SECONDS, result_of
from support.processes.scripts import without_ids
from support.same_values import difference, differences
from values.former import former_program
from values.former.former_program import (
    ERRORS,
    VALUES,
    Address,
    Colour,
    Line,
    Order,
    Point,
    Program,
    customer,
    error_of,
    order,
)

from asgi_durable import WorkflowState

pytestmark = pytest.mark.anyio

FORMER = Path(former_program.__file__).parent
NAMES = ("one_database", "two_databases", "application")
CUSTOMER = {"fullName": "Ada", "contact": {"email": "ada@example.com"}}
SOLD = {"total": "5.10", "street": "Ada", "last": [9, 9, None]}
HOST = ("host", "testserver")
JSON = ("content-type", "application/json")
EVENTS = b"data: 1\n\ndata: 2\n\n"


@pytest.fixture(params=["sqlite", "postgres"])
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Returns the URL of a database of the former version, by the name of its dump."""
    if request.param == "sqlite":
        for name in NAMES:
            shutil.copy(FORMER / f"{name}.sqlite", tmp_path)
        yield lambda name: f"sqlite:///{tmp_path}/{name}.sqlite"
        return
    server = request.getfixturevalue("postgres")
    with ExitStack() as stack:
        schemas = {name: stack.enter_context(temporary_schema(server.url)) for name in NAMES}
        asyncio.run(restore(server.url, schemas))
        yield lambda name: with_schema(server.url, schemas[name])


async def restore(url: str, schemas: dict[str, str]) -> None:
    """Load the dump into schemas of these names."""
    sql = (FORMER / "postgres.sql").read_text()
    for name, schema in schemas.items():
        sql = re.sub(rf"\b{name}\b(?=[.;])", schema, sql)
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture
def program(url_of: Callable[[str], str]) -> Program:
    return Program(url_of("one_database"))


@pytest.fixture
def program_with_two_databases(url_of: Callable[[str], str]) -> Program:
    return Program(url_of("two_databases"), url_of("application"))


def reserved() -> Order:
    """Return the step's result for an order."""
    made = order()
    made.notes["strict"] = False
    return made


def bought() -> tuple[Order, Line, Point, str]:
    """Return the result of the workflow that buys."""
    return reserved(), Line("tea", Decimal("2.50"), 2), Point(1, 2, "Elm"), "tea"


async def post(
    program: Program, key: str, path: str, *, times: int = 0, body: object = CUSTOMER
) -> Exchange:
    """Send a request again, as its client would."""
    scope = keyed(key, path, [JSON, HOST], query_string=b"times=%d" % times)
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await exchange(program.app, scope, json.dumps(body).encode())


async def test_each_kind_of_value_goes_on_from_where_it_was(program: Program) -> None:
    async with program.durable as durable:
        results = {kind: await result_of(durable, f"pending-{kind}") for kind in VALUES}

    expected = {kind: value for kind, (_, value) in VALUES.items()}
    assert differences({kind: (results[kind], expected[kind]) for kind in VALUES}) == {}
    seen = {kind: program.seen[f"pending-{kind}"] for kind in VALUES}
    assert differences({kind: (seen[kind], (expected[kind],) * 3) for kind in VALUES}) == {}
    ran = {kind: program.ran_in(f"pending-{kind}") for kind in VALUES}
    assert ran == {kind: ["hold", "again"] for kind in VALUES}


async def test_each_kind_of_finished_result_and_of_input_is_read(program: Program) -> None:
    async with program.durable as durable:
        handles = {kind: await durable.retrieve_workflow(f"finished-{kind}") for kind in VALUES}
        statuses = {kind: await handle.get_status() for kind, handle in handles.items()}
        results = {kind: await handle.get_result() for kind, handle in handles.items()}
        again = {
            kind: await durable.options(workflow_id=f"finished-{kind}").run_workflow(
                program.gives[kind], value
            )
            for kind, (_, value) in VALUES.items()
        }

    for kind, (_, value) in VALUES.items():
        assert difference(statuses[kind].input, {"value": value}) == "", kind
        for read in (statuses[kind].output, results[kind], again[kind]):
            assert difference(read, value) == "", kind


async def test_each_kind_of_error_is_caught_again(program: Program) -> None:
    async with program.durable as durable:
        assert await result_of(durable, "pending-catches") == len(ERRORS)

    caught = dict(zip(ERRORS, program.seen["pending-catches"], strict=True))
    assert differences({how: (caught[how], error_of(how)) for how in ERRORS}) == {}
    assert program.ran_in("pending-catches") == ["hold"]


@pytest.mark.parametrize("how", ERRORS)
async def test_a_finished_error_is_raised_again(program: Program, how: str) -> None:
    expected = error_of(how)
    async with program.durable as durable:
        handle = await durable.retrieve_workflow(f"finished-{how}")
        status = await handle.get_status()
        with pytest.raises(type(expected)) as raised:
            await handle.get_result()

    assert (status.status, status.input) == (WorkflowState.ERROR, {"how": how})
    assert difference(status.error, expected) == ""
    assert difference(raised.value, expected) == ""
    assert "former_program.py" in str(raised.value.__notes__)


async def test_steps_a_transaction_and_a_child_are_not_run_again(program: Program) -> None:
    async with program.durable as durable:
        result = await result_of(durable, "pending-buy")
        finished = await result_of(durable, "finished-buy")
        sold = await program.count()

    assert difference(result, bought()) == ""
    assert difference(finished, bought()) == ""
    assert program.ran_in("pending-buy") == ["hold", "insert"]
    # Two rows of the finished one and two of this one.
    assert (sold, program.ran_in("pending-buy~2")) == (4, [])


async def test_a_transaction_of_another_database_is_not_run_again(
    program_with_two_databases: Program,
) -> None:
    program = program_with_two_databases
    async with program.durable as durable:
        results = [await result_of(durable, f"pending-{name}") for name in ("buy", "unlogged")]
        sold = await program.count()

    assert difference(results, [bought(), bought()]) == ""
    assert program.ran_in("pending-buy") == ["hold", "insert"]
    # Killed when the transaction was committed, with its record only in the application's table.
    assert program.ran_in("pending-unlogged") == ["hold", "insert"]
    assert sold == 6


async def test_what_a_workflow_did_besides_is_known(program: Program) -> None:
    async with program.durable as durable:
        names = ("gathers", "background", "once", "begun", "retries", "asks", "blocks", "sleeps")
        async with asyncio.timeout(PATIENCE_SECONDS):
            results = {name: await result_of(durable, f"pending-{name}") for name in names}
        noted = await result_of(durable, "pending-background~0")

    errors = [("OutOfStockError", number) for number in (4, 5, 6)]
    status = (WorkflowState.SUCCESS, {"value": order()}, order())
    expected: dict[str, Any] = {
        "gathers": [Point(1, 1), Point(2, 2), Point(3, 3)],
        "background": "pending-background~0",
        "once": "once once",
        "begun": "once once",
        "retries": (Line("tea", Decimal(3)), errors),
        "asks": (status, Line("ink", Decimal(1))),
        "blocks": [Point(1, 1), Point(5, 6, "stays")],
        "sleeps": [Point(1, 1), Point(2, 2)],
    }
    assert differences({name: (results[name], expected[name]) for name in names}) == {}
    assert difference(noted, Line("pen", Decimal(2))) == ""
    assert {name: program.ran_in(f"pending-{name}") for name in names} == {
        "gathers": ["hold", "quick"],
        "background": ["hold"],
        "once": ["hold"],
        "begun": ["hold"],
        "retries": ["hold"],
        "asks": ["hold"],
        "blocks": ["block"],
        "sleeps": ["quick"],
    }


@pytest.mark.parametrize("path", ["/orders", "/recovered"])
async def test_a_keyed_request_goes_on_after_its_recorded_steps(
    program: Program, path: str
) -> None:
    key = "pending" if path == "/orders" else "recovered"
    async with program.durable:
        answered = await post(program, key, path, times=1)
        again = await post(program, key, path, times=1)

    assert (answered.status, json.loads(answered.body)) == (201, SOLD)
    assert (again.body, again.headers("idempotent-replayed")) == (answered.body, ["true"])
    (workflow_id,) = answered.headers("durable-id")
    assert program.ran_in(workflow_id) == ["hold", "quick"]
    assert program.ran_in(f"{workflow_id}~1") == []


async def test_a_keyed_request_that_failed_goes_on_after_its_recorded_steps(
    program: Program,
) -> None:
    async with program.durable:
        answered = await post(program, "failed", "/failing")

    assert (answered.status, json.loads(answered.body)["total"]) == (201, "5.10")
    assert program.ran_in(answered.headers("durable-id")[0]) == []


async def test_a_request_of_a_workflow_gets_the_workflow_s_result(program: Program) -> None:
    async with program.durable:
        answered = await post(program, "child", "/workflows", times=1)

    expected = customer().model_dump(mode="json", by_alias=True)
    assert (answered.status, json.loads(answered.body)) == (201, expected)
    (workflow_id,) = answered.headers("durable-id")
    assert program.ran_in(f"{workflow_id}~0") == ["hold"]


async def test_the_answers_of_keyed_requests_are_given_again(program: Program) -> None:
    async with program.durable:
        finished = await post(program, "finished", "/orders")
        other = await post(program, "finished", "/orders", body={**CUSTOMER, "fullName": "Bob"})
        refused = await post(program, "refused", "/refused")
        stream = await post(program, "stream", "/events")

    assert (finished.status, json.loads(finished.body)) == (201, SOLD)
    assert (refused.status, json.loads(refused.body)["code"]) == (409, "SOLD_OUT")
    assert (stream.status, without_ids(stream.body)) == (200, EVENTS)
    for answered in (finished, refused, stream):
        assert answered.headers("idempotent-replayed") == ["true"]
        assert program.ran_in(answered.headers("durable-id")[0]) == []
    assert (other.status, json.loads(other.body)["code"]) == (422, "KEY_REUSED")


async def test_a_stream_that_was_cut_goes_on(program: Program) -> None:
    async with program.durable:
        answered = await post(program, "cut", "/events", times=1)
        again = await post(program, "cut", "/events", times=1)

    assert (answered.status, without_ids(answered.body)) == (200, EVENTS)
    assert again.body == answered.body
    (workflow_id,) = answered.headers("durable-id")
    assert program.ran_in(workflow_id) == ["hold"]


async def test_new_values_are_kept_beside_the_former_ones(program: Program) -> None:
    address = Address("Oak", Colour.RED)
    async with program.durable as durable:
        with_id = durable.options(workflow_id="new")
        assert (
            difference(await with_id.run_workflow(program.ship, address), Point(1, 2, "Oak")) == ""
        )
    async with program.durable as durable:
        handle = await durable.retrieve_workflow("new")
        status = await handle.get_status()

    assert difference(status.input, {"address": address}) == ""
    assert difference(status.output, Point(1, 2, "Oak")) == ""
