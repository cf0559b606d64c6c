"""Values that one version of an application recorded and the next version reads."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.executors import query
from support.same_values import difference
from support.versions import (
    BEFORE,
    CHANGES,
    KINDS,
    PLACES,
    READING_PLACES,
    Change,
    Class,
    Code,
    Defined,
    Field,
    Version,
    as_field,
    define,
    finish,
    leave,
    stays_parked,
)

from asgi_durable import Durable, WorkflowState

pytestmark = pytest.mark.anyio

STEP_RESULT = PLACES["a step's result"]
N, NAME = BEFORE.fields
DEFAULT = CHANGES["a field with a default is added"]
ANEW = Change(BEFORE, Class((N, NAME, Field("x", "str", "'x'")), name="Purchase", module="store"))
WITH_DEFAULT_GONE = Change(
    Class((N, Field("name", "str", "'a'"))), Class((N,)), {"n": 1, "name": "a"}, {"n": 1}
)
WITH_DEFAULT_NOW = Change(BEFORE, Class((N, Field("name", "str", "'a'"))))
NUMBERS = [Field(name, "int") for name in ("a", "b", "c")]
# A field in the middle is removed, and the others have changed places.
OTHER_FIELDS = Change(
    Class(tuple(NUMBERS)),
    Class((NUMBERS[2], NUMBERS[0])),
    {"a": 1, "b": 2, "c": 3},
    {"a": 1, "c": 3},
)
KIND_CHANGES = [
    pytest.param(kind, change, id=f"{kind_name}: {change_name}")
    for kind_name, kind in KINDS.items()
    for change_name, change in CHANGES.items()
    if change.suits(kind)
]
SOME_KINDS = {name: KINDS[name] for name in ("dataclass", "model")}
SOME_CHANGES = [
    pytest.param(kind, change, id=f"{kind_name}: {change_name}")
    for kind_name, kind in SOME_KINDS.items()
    for change_name, change in {
        "a field is gone": CHANGES["a field is gone"],
        "a type is wider": CHANGES["a type is wider"],
        "another name and place, and a field with a default": ANEW,
    }.items()
]
CONTAINERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "list": (lambda cls: list[cls], lambda value: [value]),
    "dict": (lambda cls: dict[str, cls], lambda value: {"k": value}),
    "tuple": (lambda cls: tuple[int, cls], lambda value: (1, value)),
    "optional": (lambda cls: cls | None, lambda value: value),
}


async def evolve(
    place: Callable[[Code], Defined], versions: tuple[Version, Version], url: str
) -> Code:
    """Let the second version finish a workflow of the first; return the second version."""
    before = Code(place, versions[0], url, waits=True)
    await leave(before)
    after = Code(place, versions[1], url)
    await finish(after)
    return after


@pytest.mark.parametrize(("kind", "change"), KIND_CHANGES)
async def test_a_step_s_result_is_one_of_today_s_class(url: str, kind, change) -> None:
    with change.made(kind) as versions:
        code = await evolve(STEP_RESULT, versions, url)

        assert difference(code.seen, [versions[1].make()]) == ""
        assert code.ran == ["hold"]


@pytest.mark.parametrize("place", [place for place in READING_PLACES if place != "a step's result"])
@pytest.mark.parametrize(("kind", "change"), SOME_CHANGES)
async def test_so_it_is_elsewhere(url: str, place: str, kind, change) -> None:
    with change.made(kind) as versions:
        code = await evolve(PLACES[place], versions, url)

        assert difference(code.seen, [versions[1].make()]) == ""
        assert code.ran == ["hold"]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", KINDS)
async def test_so_it_is_within_other_types(url: str, container: str, kind: str) -> None:
    wrap, put = CONTAINERS[container]
    with ANEW.made(KINDS[kind]) as versions:
        wrapped = versions[0].within(wrap, put), versions[1].within(wrap, put)
        code = await evolve(STEP_RESULT, wrapped, url)

        assert difference(code.seen, [wrapped[1].make()]) == ""


# Pydantic and msgspec do not know each other's classes, and pydantic refuses a TypedDict of
# `typing` before Python 3.12.
NO_MODELS = ("struct", "attrs", "typeddict")
HOLDERS = [
    pytest.param(held, holder, id=f"{held} in {holder}")
    for held in ("dataclass", "namedtuple", "model", "struct")
    for holder in KINDS
    if not (held == "struct" and holder == "model")
    and not (held == "model" and holder in NO_MODELS)
]


@pytest.mark.parametrize("change", [OTHER_FIELDS, ANEW], ids=["other fields", "another name"])
@pytest.mark.parametrize(("held", "holder"), HOLDERS)
async def test_so_it_is_in_a_field_of_another_class(
    url: str, held: str, holder: str, change: Change
) -> None:
    with change.made(KINDS[held]) as (former, later):
        with as_field(KINDS[holder], former) as version:
            await leave(Code(STEP_RESULT, version, url, waits=True))
        later.load()
        with as_field(KINDS[holder], later) as version:
            code = Code(STEP_RESULT, version, url)
            await finish(code)

            assert difference(code.seen, [version.make()]) == ""


@pytest.mark.parametrize("place", [place for place in PLACES if place.endswith("argument")])
@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(WITH_DEFAULT_GONE, id="a field with its default is gone"),
        pytest.param(WITH_DEFAULT_NOW, id="a field has a default now, and has that"),
        pytest.param(ANEW, id="a class has another name and place, and a field with a default"),
        pytest.param(CHANGES["a type has None as well"], id="a type has None as well"),
        pytest.param(CHANGES["the fields have another order"], id="the fields have another order"),
    ],
)
async def test_an_argument_of_today_s_class_is_the_one_that_is_recorded(
    url: str, place: str, kind: str, change: Change
) -> None:
    with change.made(KINDS[kind]) as versions:
        code = await evolve(PLACES[place], versions, url)

    # A background workflow is started only now, at its caller's end.
    assert code.ran in (["hold"], ["hold", "take"])
    assert "take" not in code.ran or place.startswith("a background")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SOME_KINDS])
async def test_an_argument_of_any_kind_is_the_one_that_is_recorded(url: str, kind: str) -> None:
    with ANEW.made(KINDS[kind]) as versions:
        code = await evolve(PLACES["a step's argument"], versions, url)

    assert code.ran == ["hold"]


async def test_another_argument_is_another_one_still(url: str, caplog) -> None:
    """A digest leaves out defaults, and no values that differ from them."""
    change = Change(
        BEFORE, Class((N, NAME, Field("x", "str", "'x'"))), expected={"n": 1, "name": "a", "x": "y"}
    )
    with change.made(KINDS["dataclass"]) as versions:
        await leave(Code(PLACES["a step's argument"], versions[0], url, waits=True))
        async with Code(PLACES["a step's argument"], versions[1], url).durable as durable:
            assert "other arguments" in await stays_parked(durable, caplog)


# Transactions in a database of the application's


@pytest.mark.parametrize("is_logged", [True, False])
@pytest.mark.parametrize(("kind", "change"), SOME_CHANGES)
async def test_a_record_beside_the_application_s_rows_is_one_of_today_s_class(
    url: str, tmp_path: Path, is_logged: bool, kind, change
) -> None:
    options = {"application_url": f"sqlite:///{tmp_path}/application.db"}
    place = PLACES["a transaction's result"]
    with change.made(kind) as versions:
        await leave(Code(place, versions[0], url, waits=True, **options))
        if not is_logged:
            await query(url, "DELETE FROM asgi_durable_steps")
        code = Code(place, versions[1], url, **options)
        await finish(code)

        assert difference(code.seen, [versions[1].make()]) == ""
        assert code.ran == ["hold"]


# Finished workflows


def make_workflow(code: Code) -> Defined:
    """Define a workflow that returns its argument."""

    async def work(value: Any) -> Any:
        code.ran.append("work")
        return value

    hint = code.version.hint
    workflow = code.workflow("work", work, **{"value": hint, "return": hint})
    return workflow, lambda: (code.version.make(),)


@pytest.mark.parametrize(("kind", "change"), SOME_CHANGES)
async def test_a_finished_result_and_its_input_are_of_today_s_class(url: str, kind, change) -> None:
    with change.made(kind) as versions:
        before = Code(make_workflow, versions[0], url)
        async with before.durable as durable:
            await durable.options(workflow_id="w").run_workflow(before.work, *before.arguments())
        after = Code(make_workflow, versions[1], url)
        async with after.durable as durable:
            handle = await durable.retrieve_workflow("w")
            status, result = await handle.get_status(), await handle.get_result()

        expected = versions[1].make()
        assert difference([result, status.output], [expected, expected]) == ""
        assert difference(status.input, {"value": expected}) == ""
        assert (status.status, after.ran) == (WorkflowState.SUCCESS, [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_with_the_same_argument_attaches_to_a_finished_workflow(
    url: str, kind: str
) -> None:
    with ANEW.made(KINDS[kind]) as versions:
        before = Code(make_workflow, versions[0], url)
        async with before.durable as durable:
            await durable.options(workflow_id="w").run_workflow(before.work, *before.arguments())
        after = Code(make_workflow, versions[1], url)
        async with after.durable as durable:
            with_id = durable.options(workflow_id="w")
            result = await with_id.run_workflow(after.work, *after.arguments())

        assert difference(result, versions[1].make()) == ""
        assert after.ran == []


# Parameters


async def test_a_step_may_get_a_parameter_with_a_default(url: str) -> None:
    seen = []

    def define(durable: Durable, gate: Callable[[], Any], *, is_later: bool):
        if is_later:

            @durable.step(name="take")
            async def take(n: int, *, times: int = 1, unit: str = "kg") -> int:
                raise AssertionError
        else:

            @durable.step(name="take")
            async def take(n: int) -> int:
                return n

        @durable.step(name="hold")
        async def hold() -> None:
            await gate()

        @durable.workflow(name="work")
        async def work() -> None:
            first = await take(1)
            seen.append([first, await (take(2, times=1) if is_later else take(2))])
            await hold()

        return work

    await change_code(url, define)
    assert seen == [[1, 2], [1, 2]]


@pytest.mark.parametrize("is_annotated", [True, False])
async def test_a_workflow_may_get_a_parameter_with_a_default(url: str, is_annotated: bool) -> None:
    seen = []

    def define(durable: Durable, gate: Callable[[], Any], *, is_later: bool):
        @durable.step(name="hold")
        async def hold() -> None:
            await gate()

        if is_later:

            async def work(n, times=1, *, unit="kg"):
                await hold()
                seen.append((n, times, unit))

            hints: dict[str, Any] = {"n": int, "times": int, "unit": str}
        else:

            async def work(n):  # type: ignore[misc]
                await hold()

            hints = {"n": int}
        work.__annotations__ = hints if is_annotated else {}
        return durable.workflow(name="work")(work)

    await change_code(url, define, 7)
    assert seen == [(7, 1, "kg")]


async def test_a_child_may_get_a_parameter_with_a_default(url: str) -> None:
    ran = []

    def define(durable: Durable, gate: Callable[[], Any], *, is_later: bool):
        if is_later:

            @durable.workflow(name="child")
            async def child(n: int, times: int = 1) -> int:
                raise AssertionError
        else:

            @durable.workflow(name="child")
            async def child(n: int) -> int:
                return n

        @durable.step(name="hold")
        async def hold() -> None:
            await gate()

        @durable.workflow(name="work")
        async def work() -> None:
            ran.append(await child(1))
            await hold()

        return work

    await change_code(url, define)
    assert ran == [1, 1]


async def change_code(url: str, define: Callable[..., Any], *args: object) -> None:
    """Interrupt a workflow of the former functions, and finish it with the later ones."""
    before, after = (
        Code(lambda code: (None, tuple), NO_VERSION, url, waits=waits) for waits in (True, False)
    )
    before.work = define(before.durable, before.gate.wait, is_later=False)
    before.arguments = lambda: args
    await leave(before)
    define(after.durable, after.gate.wait, is_later=True)
    await finish(after)


NO_VERSION = Version(None, lambda: None)


# Enums


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


LaterColour = enum.Enum("LaterColour", [("CRIMSON", "red"), ("BLUE", "blue"), ("GREEN", "green")])
LaterSize = enum.IntEnum("LaterSize", [("TINY", 1), ("SMALL", 2)])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param((Colour, Colour.RED), (LaterColour, LaterColour.CRIMSON), id="enum"),  # type: ignore[attr-defined]
        pytest.param((Size, Size.SMALL), (LaterSize, LaterSize.TINY), id="intenum"),  # type: ignore[attr-defined]
        pytest.param(
            (dict[Colour, list[Size]], {Colour.RED: [Size.SMALL]}),
            (dict[LaterColour, list[LaterSize]], {LaterColour.CRIMSON: [LaterSize.TINY]}),  # type: ignore[attr-defined, valid-type]
            id="within",
        ),
    ],
)
@pytest.mark.parametrize("place", READING_PLACES)
async def test_a_member_of_an_enum_may_have_another_name(
    url: str, place: str, before: tuple[Any, Any], after: tuple[Any, Any]
) -> None:
    versions = tuple(Version(hint, lambda value=value: value) for hint, value in (before, after))  # type: ignore[misc]
    code = await evolve(PLACES[place], versions, url)  # type: ignore[arg-type]

    assert difference(code.seen, [after[1]]) == ""


# Unions


@pytest.mark.parametrize("kind", ["dataclass", "model", "struct", "attrs", "namedtuple"])
async def test_a_member_of_a_union_is_of_its_class_still(url: str, kind: str) -> None:
    """Another class of the union may now have the fields that this one had."""
    n, m, k = (Field(name, "int", "0") for name in "nmk")
    one, other = Class((replace(n, default=None),)), Class((replace(m, default=None),), "Other")
    one_later, other_later = Class((k,)), Class((m, n), "Other")
    made = KINDS[kind]
    with define(made, other, {}) as former_other, define(made, one, {"n": 1}) as former:
        version = former.within(lambda cls: cls | former_other.hint, lambda value: value)
        await leave(Code(STEP_RESULT, version, url, waits=True))
    with define(made, other_later, {}) as later_other, define(made, one_later, {}) as later:
        version = later.within(lambda cls: cls | later_other.hint, lambda value: value)
        code = Code(STEP_RESULT, version, url)
        await finish(code)

        assert difference(code.seen, [later.make()]) == ""


# Values without annotations


def make_unannotated(code: Code) -> Defined:
    """Define a step without annotations, and record its result."""
    make = code.step("make", code.make)

    async def work() -> None:
        code.seen.append(await make())
        await code.hold()

    return code.workflow("work", work), tuple


TAGGED_KINDS = ("dataclass", "frozen", "model", "namedtuple")


@pytest.mark.parametrize("kind", TAGGED_KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "a field with a default is added",
        "a field is gone",
        "the fields have another order",
        "a type has None as well",
    ],
)
async def test_a_registered_class_may_change(url: str, kind: str, name: str) -> None:
    with CHANGES[name].made(KINDS[kind]) as (former, later):
        before = Code(make_unannotated, former, url, waits=True)
        before.durable.register_type(former.hint)
        await leave(before)
        after = Code(make_unannotated, later, url)
        after.durable.register_type(later.hint)
        await finish(after)

        assert difference(after.seen, [later.make()]) == ""


@pytest.mark.parametrize("kind", TAGGED_KINDS)
@pytest.mark.parametrize("has_name", [True, False])
async def test_a_registered_class_may_have_another_name(
    url: str, kind: str, has_name: bool
) -> None:
    with ANEW.made(KINDS[kind]) as (former, later):
        before = Code(make_unannotated, former, url, waits=True)
        before.durable.register_type(former.hint, **({"name": "order"} if has_name else {}))
        await leave(before)
        after = Code(make_unannotated, later, url)
        known = {"name": "order"} if has_name else {"aliases": ["shop:Order"]}
        after.durable.register_type(later.hint, **known)
        await finish(after)

        assert difference(after.seen, [later.make()]) == ""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TAGGED_KINDS)
async def test_annotations_may_be_added(url: str, place: str, kind: str) -> None:
    with DEFAULT.made(KINDS[kind]) as (former, later):
        before = Code(PLACES[place], replace(former, hint=Any), url, waits=True)
        before.durable.register_type(former.hint)
        await leave(before)
        after = Code(PLACES[place], later, url)
        await finish(after)

        assert difference(after.seen, [later.make()] if place in READING_PLACES else []) == ""
        assert "make" not in after.ran


@pytest.mark.parametrize("place", ["a step's argument", "a transaction's argument"])
@pytest.mark.parametrize("kind", TAGGED_KINDS)
async def test_annotations_of_arguments_may_be_taken_away(url: str, place: str, kind: str) -> None:
    with DEFAULT.made(KINDS[kind]) as (former, later):
        await leave(Code(PLACES[place], former, url, waits=True))
        after = Code(PLACES[place], replace(later, hint=Any), url)
        after.durable.register_type(later.hint)
        await finish(after)

    assert after.ran == ["hold"]
