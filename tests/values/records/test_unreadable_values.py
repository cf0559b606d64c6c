"""A value that today's code cannot read: the workflow waits for other code, and logs why."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.asgi import answer, exchange, keyed
from support.executors import query, result_of, row_of
from support.same_values import difference
from support.versions import (
    BEFORE,
    KINDS,
    PLACES,
    READING_PLACES,
    Change,
    Class,
    Code,
    Defined,
    Field,
    Version,
    finish,
    leave,
    stays_parked,
    warnings_in,
)

from asgi_durable import DecodeError, Durable, WorkflowState

pytestmark = pytest.mark.anyio

N, NAME = BEFORE.fields
REQUIRED = Change(
    BEFORE, Class((N, NAME, Field("extra", "str"))), expected={"n": 1, "name": "a", "extra": ""}
)
OTHER_TYPE = Change(
    Class((Field("extra", "int"), NAME)),
    Class((Field("extra", "list[int]"), NAME)),
    {"extra": 1, "name": "a"},
    {"extra": [1], "name": "a"},
)
CHANGES = {"a required field is added": REQUIRED, "a field has another type": OTHER_TYPE}
# The name of the value's function, by place.
NAMES = {place: "work" if place == "a workflow's input" else "make" for place in READING_PLACES}
SOME_KINDS = ["dataclass", "model"]
# The remedies that a line names: a default, a type, the former code, a registration.
REMEDIES = ("default", "type", "register")


def names_all(warning: str, *names: str) -> bool:
    """Return True if a line names everything that is needed for the repair."""
    assert [name for name in ("w", *names) if name not in warning] == [], warning
    assert any(remedy in warning for remedy in REMEDIES), warning
    return True


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_step_s_result_waits_for_code_that_can_read_it(
    url: str, caplog, kind: str, change: str
) -> None:
    place = PLACES["a step's result"]
    with CHANGES[change].made(KINDS[kind]) as (former, later):
        await leave(Code(place, former, url, waits=True))
        async with (code := Code(place, later, url)).durable as durable:
            assert names_all(await stays_parked(durable, caplog), "make", "extra")
        assert (code.seen, code.ran) == ([], [])
        again = Code(place, former, url)
        await finish(again)

        assert difference(again.seen, [former.make()]) == ""
        assert again.ran == ["hold"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("place", [place for place in READING_PLACES if place != "a step's result"])
async def test_so_does_what_is_elsewhere(
    url: str, caplog, place: str, kind: str, change: str
) -> None:
    with CHANGES[change].made(KINDS[kind]) as (former, later):
        await leave(Code(PLACES[place], former, url, waits=True))
        async with (code := Code(PLACES[place], later, url)).durable as durable:
            assert names_all(await stays_parked(durable, caplog), NAMES[place], "extra")
        assert (code.seen, code.ran) == ([], [])
        again = Code(PLACES[place], former, url)
        await finish(again)

        assert difference(again.seen, [former.make()]) == ""
        assert again.ran == ["hold"]


@pytest.mark.parametrize("is_logged", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", SOME_KINDS)
async def test_so_does_a_record_beside_the_application_s_rows(
    url: str, tmp_path: Path, caplog, kind: str, change: str, is_logged: bool
) -> None:
    options = {"application_url": f"sqlite:///{tmp_path}/application.db"}
    place = PLACES["a transaction's result"]
    with CHANGES[change].made(KINDS[kind]) as (former, later):
        await leave(Code(place, former, url, waits=True, **options))
        if not is_logged:
            await query(url, "DELETE FROM asgi_durable_steps")
        async with (code := Code(place, later, url, **options)).durable as durable:
            assert names_all(await stays_parked(durable, caplog), "make", "extra")
        assert (code.seen, code.ran) == ([], [])
        again = Code(place, former, url, **options)
        await finish(again)

        assert difference(again.seen, [former.make()]) == ""
        assert again.ran == ["hold"]


@pytest.mark.parametrize("place", READING_PLACES)
async def test_later_code_that_can_read_it_finishes_it_as_well(
    url: str, caplog, place: str
) -> None:
    mended = Change(BEFORE, Class((N, NAME, Field("extra", "str", "''"))))
    kind = KINDS["dataclass"]
    with REQUIRED.made(kind) as (former, later):
        await leave(Code(PLACES[place], former, url, waits=True))
        async with Code(PLACES[place], later, url).durable as durable:
            await stays_parked(durable, caplog)
    with mended.made(kind) as (_, fitting):
        code = Code(PLACES[place], fitting, url)
        await finish(code)

        assert difference(code.seen, [fitting.make()]) == ""


def call_finished(code: Code) -> Defined:
    """Define a workflow that calls a finished workflow in its first run."""

    async def work() -> None:
        called = code.durable.options(workflow_id="finished").run_workflow(make)
        code.seen.append(await called)

    make = code.workflow("make", code.make, **{"return": code.version.hint})
    return code.workflow("work", work), tuple


def ask_finished(code: Code) -> Defined:
    """Define a workflow that retrieves the result of a finished workflow."""

    async def work() -> None:
        handle = await code.durable.retrieve_workflow("finished")
        code.seen.append(await handle.get_result())

    code.workflow("make", code.make, **{"return": code.version.hint})
    return code.workflow("work", work), tuple


@pytest.mark.parametrize("define", [call_finished, ask_finished])
@pytest.mark.parametrize("kind", SOME_KINDS)
async def test_a_first_run_waits_as_well(url: str, caplog, kind: str, define) -> None:
    def make_result(code: Code) -> Defined:
        return code.workflow("make", code.make, **{"return": code.version.hint}), tuple

    with REQUIRED.made(KINDS[kind]) as (former, later):
        async with (made := Code(make_result, former, url)).durable as durable:
            await durable.options(workflow_id="finished").run_workflow(made.work)
        async with (code := Code(define, later, url)).durable as durable:
            await durable.options(workflow_id="w").start_workflow(code.work)
            assert names_all(await stays_parked(durable, caplog), "make", "extra")
        again = Code(define, former, url)
        await finish(again)

        assert difference(again.seen, [former.make()]) == ""
        assert (code.ran, again.ran) == ([], [])


@pytest.mark.parametrize("kind", SOME_KINDS)
async def test_who_asks_for_a_finished_result_gets_an_error_and_the_status(
    url: str, caplog, kind: str
) -> None:
    def make_result(code: Code) -> Defined:
        return code.workflow("make", code.make, **{"return": code.version.hint}), tuple

    with REQUIRED.made(KINDS[kind]) as (former, later):
        async with (made := Code(make_result, former, url)).durable as durable:
            await durable.options(workflow_id="w").run_workflow(made.work)
        async with Code(make_result, later, url).durable as durable:
            handle = await durable.retrieve_workflow("w")
            status = await handle.get_status()
            with pytest.raises(DecodeError, match="extra"):
                await handle.get_result()
        assert (status.status, status.error) == (WorkflowState.SUCCESS, None)
        assert warnings_in(caplog) == []
        async with Code(make_result, former, url).durable as durable:
            assert difference(await result_of(durable, "w"), former.make()) == ""


# Parameters


async def a_former_workflow(url: str) -> None:
    """Interrupt a workflow with a parameter ``n``."""
    code = Code(
        lambda code: (work_of(code.durable, code.hold), lambda: (1,)), NONE, url, waits=True
    )
    await leave(code)


def work_of(durable: Durable, hold: Any) -> Any:
    @durable.workflow(name="work")
    async def work(n: int) -> int:
        await hold()
        return n

    return work


NONE = Version(None, lambda: None)


async def gone() -> str:
    return "has no parameter"


async def added(n: int, extra: str) -> str:
    return f"{n} {extra}"


async def changed(n: list[int]) -> str:
    return str(n)


@pytest.mark.parametrize(("function", "name"), [(gone, "n"), (added, "extra"), (changed, "n")])
async def test_an_input_that_does_not_fit_the_parameters_waits(
    url: str, caplog, function, name: str
) -> None:
    await a_former_workflow(url)
    async with Durable(url, drain_timeout=0.0) as durable:
        durable.workflow(name="work")(function)
        warning = await stays_parked(durable, caplog)
        assert f"'{name}'" in warning or f"{name!s}" in warning.split(":", 2)[-1]
        assert "'work'" in warning or "(work)" in warning
    async with Durable(url, drain_timeout=0.0) as durable:

        @durable.step(name="hold")
        async def hold() -> None:
            pass

        work_of(durable, hold)
        assert await result_of(durable, "w") == 1


# Annotations and classes that were removed


@pytest.mark.parametrize("place", READING_PLACES)
async def test_a_value_whose_annotation_is_gone_waits_for_one(url: str, caplog, place: str) -> None:
    with Change(BEFORE, BEFORE).made(KINDS["dataclass"]) as (former, _):
        await leave(Code(PLACES[place], former, url, waits=True))
        code = Code(PLACES[place], replace(former, hint=Any), url)
        code.durable.register_type(former.hint)
        async with code.durable as durable:
            assert names_all(await stays_parked(durable, caplog), NAMES[place], "annotate it again")
        again = Code(PLACES[place], former, url)
        await finish(again)

        assert difference(again.seen, [former.make()]) == ""


def make_unannotated(code: Code) -> Defined:
    """Define a step without annotations, and record its result."""
    make = code.step("make", code.make)

    async def work() -> None:
        code.seen.append(await make())
        await code.hold()

    return code.workflow("work", work), tuple


def take_unannotated(code: Code) -> Defined:
    """Define a workflow without annotations, and record its argument."""

    async def work(value: Any) -> None:
        await code.hold()
        code.seen.append(value)

    workflow = code.workflow("work", work, value=Any)
    return workflow, lambda: (code.version.make(),)


@pytest.mark.parametrize("define", [make_unannotated, take_unannotated])
@pytest.mark.parametrize("kind", ["dataclass", "model", "namedtuple"])
async def test_a_registered_class_that_is_gone_is_waited_for(
    url: str, caplog, kind: str, define
) -> None:
    with Change(BEFORE, BEFORE).made(KINDS[kind]) as (former, _):
        code = Code(define, former, url, waits=True)
        code.durable.register_type(former.hint)
        await leave(code)
        async with Code(define, former, url).durable as durable:
            warning = await stays_parked(durable, caplog)
            assert names_all(warning, "shop:Order", "register")
        again = Code(define, former, url)
        again.durable.register_type(former.hint)
        await finish(again)

        assert difference(again.seen, [former.make()]) == ""


@pytest.mark.parametrize("kind", ["dataclass", "model", "namedtuple"])
async def test_a_registered_class_that_requires_more_is_waited_for(
    url: str, caplog, kind: str
) -> None:
    with REQUIRED.made(KINDS[kind]) as (former, later):
        code = Code(make_unannotated, former, url, waits=True)
        code.durable.register_type(former.hint)
        await leave(code)
        changed = Code(make_unannotated, later, url)
        changed.durable.register_type(later.hint)
        async with changed.durable as durable:
            assert names_all(await stays_parked(durable, caplog), "make", "extra")
        again = Code(make_unannotated, former, url)
        again.durable.register_type(former.hint)
        await finish(again)

        assert difference(again.seen, [former.make()]) == ""


# Requests


def application(code: Code) -> Any:
    """Return an app whose handler makes the value in a step, and responds after another step."""
    make = code.step("make", code.make, **{"return": code.version.hint})

    async def serve(_scope, _receive, send) -> None:
        code.seen.append(await make())
        await code.hold()
        await answer(send, b"made", status=201)

    return code.durable.wrap(serve)


@pytest.mark.parametrize("kind", SOME_KINDS)
async def test_a_request_is_answered_for_good_by_code_that_can_read_its_steps(
    url: str, kind: str
) -> None:
    def serve(version: Version, *, waits: bool) -> tuple[Code, Any]:
        code = Code(lambda _: (None, tuple), version, url, waits=waits)
        return code, application(code)

    with REQUIRED.made(KINDS[kind]) as (former, later):
        code, app = serve(former, waits=True)
        async with code.durable:
            request = asyncio.create_task(exchange(app, keyed()))
            await code.gate.reached.wait()
        await asyncio.wait([request])
        code, app = serve(later, waits=False)
        async with code.durable:
            refused = await exchange(app, keyed())
        assert (refused.status, code.ran) == (500, [])
        assert json.loads(refused.body)["code"] == DecodeError.default_code
        code, app = serve(former, waits=False)
        async with code.durable:
            answered = await exchange(app, keyed())

        assert (answered.status, answered.body, code.ran) == (201, b"made", ["hold"])
        assert difference(code.seen, [former.make()]) == ""
    (workflow_id,) = answered.headers("durable-id")
    assert await row_of(url, workflow_id, "state") == ("SUCCESS",)
