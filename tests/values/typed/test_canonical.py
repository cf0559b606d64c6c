"""Digests of arguments: equal for calls of the same meaning, also if the code has other names."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import itertools
from typing import Any, NamedTuple

import attrs
import msgspec
import pytest
from pydantic import BaseModel, Field

from asgi_durable import Durable, DurableError

NUMBERS = itertools.count()


class Colour(enum.Enum):
    RED = "red"


def versions(base: Any, decorate: Any, name: str, fields: dict[str, Any]) -> Any:
    """Make a class with fields; all but the first have defaults."""
    hints = dict.fromkeys(fields, Any)
    defaults = {field: default for field, default in fields.items() if default is not ...}
    members = {"__annotations__": hints, "__module__": __name__, "__qualname__": name, **defaults}
    return decorate(type(base)(name, (base,), members))


MAKERS = {
    "dataclass": (object, dataclasses.dataclass),
    "model": (BaseModel, lambda cls: cls),
    "struct": (msgspec.Struct, lambda cls: cls),
    "attrs": (object, attrs.define),
}


def digest(function: Any, *args: Any, **kwargs: Any) -> Any:
    durable = Durable("sqlite://")
    step = durable.step(function)
    definition = step.__durable_definition__  # type: ignore[attr-defined]
    definition.prepare()
    return durable.engine.registry.digest(definition, args, kwargs)


def are_same(one: Any, other: Any) -> bool:
    return one.fits(other.value) and other.fits(one.value)


async def charge(order: Any, amount: int = 0, *more: Any, note: str = "") -> None: ...


async def charge_later(
    order: Any, amount: int = 0, *more: Any, note: str = "", at: Any = 1
) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((5,), {}), ((5, 0), {}), ((5,), {"note": ""}), ((5, 0), {"note": ""})],
    ids=str,
)
def test_what_has_its_default_is_no_part_of_the_digest(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert digest(charge, *args, **kwargs).value == digest(charge, 5).value


def test_a_parameter_that_came_with_the_code_changes_nothing() -> None:
    assert digest(charge, 5, note="x").value == digest(charge_later, 5, note="x", at=1).value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((5,), (6,)),
        ((5, 0, 1), (5, 1)),
        (("1",), (1,)),
        ((True,), (1,)),
        (([1],), (["1"],)),
        (({"a": 1},), ({"a": 2},)),
        (({1: "a"},), ({"1": "a"},)),
        (({1, 2},), ({1, 3},)),
        ((Colour.RED,), ("blue",)),
        ((b"a",), (b"b",)),
        ((1.5,), (2.5,)),
        ((datetime.date(2026, 1, 1),), (datetime.date(2026, 1, 2),)),
    ],
    ids=str,
)
def test_other_arguments_have_another_digest(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert not are_same(digest(charge, *one), digest(charge, *other))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_field_with_a_default_and_another_name_change_nothing(kind: str) -> None:
    base, decorate = MAKERS[kind]
    before = versions(base, decorate, "Order", {"item": ...})
    after = versions(base, decorate, "Purchase", {"item": ..., "gift": False, "tags": None})

    ones, others = digest(charge, before(item="pen")), digest(charge, after(item="pen"))

    assert ones.value == others.value
    assert not are_same(ones, digest(charge, after(item="pen", gift=True)))


def test_named_tuples_count_by_their_fields() -> None:
    class Point(NamedTuple):
        x: int
        z: int = 0

    assert digest(charge, Point(1)).value == digest(charge, Point(1, 0)).value
    assert not are_same(digest(charge, Point(1)), digest(charge, Point(1, 1)))


def test_a_factory_of_the_applications_is_called_for_a_replay_alone() -> None:
    @dataclasses.dataclass
    class Before:
        item: str

    @dataclasses.dataclass
    class After:
        item: str
        labels: list[str] = dataclasses.field(default_factory=lambda: ["new"])
        number: int = dataclasses.field(default_factory=lambda: next(NUMBERS))

    order = After("pen", number=-1)
    reached = next(NUMBERS)
    recorded = digest(charge, order)
    assert next(NUMBERS) == reached + 1

    assert recorded.fits(recorded.value)
    labelled = dataclasses.make_dataclass(
        "Labelled",
        [("item", str), ("labels", list, dataclasses.field(default_factory=lambda: ["new"]))],
    )
    assert digest(charge, labelled("pen")).fits(digest(charge, Before("pen")).value)


def test_a_model_s_required_and_made_fields_count() -> None:
    class Order(BaseModel):
        item: str
        tags: list[str] = Field(default_factory=list)

    assert (
        digest(charge, Order(item="pen")).value == digest(charge, Order(item="pen", tags=[])).value
    )
    assert not are_same(digest(charge, Order(item="pen")), digest(charge, Order(item="ink")))


def test_what_cannot_be_recorded_counts_by_its_class() -> None:
    assert digest(charge, object()).value == digest(charge, object()).value
    assert not are_same(digest(charge, object()), digest(charge, NUMBERS))


def test_text_that_no_utf_8_can_hold_has_a_digest() -> None:
    assert digest(charge, "\ud800").value == digest(charge, "\ud800").value
    assert digest(charge, "\ud800").value != digest(charge, "\ud801").value


def test_a_comparison_that_fails_is_no_failure_of_the_call() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise DurableError

        __hash__ = None  # type: ignore[assignment]

    async def call(odd: Any = Odd()) -> None: ...  # noqa: B008

    assert digest(call, Odd()).value == digest(call, Odd()).value


@dataclasses.dataclass
class Node:
    name: str
    parent: Any = None


def nested(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


def circular() -> Node:
    node = Node("a")
    node.parent = [node]
    return node


@pytest.mark.parametrize("make", [circular, lambda: nested(100_000)], ids=["circular", "deep"])
def test_a_value_without_a_form_counts_by_its_class(make: Any) -> None:
    one, other = digest(charge, make(), 5), digest(charge, make(), 5)

    assert are_same(one, other)
    assert not are_same(one, digest(charge, make(), 6))
    assert list(digest(charge, make(), note="x")._others())
