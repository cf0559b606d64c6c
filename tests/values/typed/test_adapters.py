"""Values by their type hints: the recorded form, the result, and allowed changes of code."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import math
import pathlib
import types
import uuid
import zoneinfo
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import attrs
import msgspec
import pytest
from pydantic import BaseModel, Field, PrivateAttr

from asgi_durable import DecodeError
from asgi_durable.codec.typed.adapters import Adapter, MisfitError, adapter_for
from asgi_durable.codec.typed.equality import is_same

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 2


class Name(enum.StrEnum):
    ADA = "ada"


@dataclasses.dataclass
class Item:
    name: str
    count: int = 1
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Parcel:
    items: tuple[Item, ...]
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Special(Item):
    price: int = 0


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


class Point(NamedTuple):
    x: int
    y: int = 2


class Line(NamedTuple):
    start: Point
    end: Point | None = None


class Options(TypedDict, total=False):
    fast: bool


class Row(msgspec.Struct):
    key: str
    value: int = 0


@attrs.define
class Crate:
    weight: float


class Order(BaseModel):
    user_id: Annotated[int, Field(alias="userId")]
    note: str | None = None
    items: list[Item] = []
    _seen: int = PrivateAttr(default=0)


class Orders(BaseModel):
    orders: dict[str, Order]


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
UTC_NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)

FITTING: list[tuple[Any, Any]] = [
    (int, 2**70),
    (str, "ä\x00"),
    (float, -0.0),
    (bool, True),
    (bytes, b"\x00\xff"),
    (list[int], [1, 2]),
    (dict[str, Any], {"a": [1, {"b": None}]}),
    (dict[str, object], {"a": [1, {"b": None}]}),
    (dict[int, str], {1: "a"}),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (int | str | None, None),
    (Literal["a", "b"], "a"),
    (UserId, UserId(3)),
    (Colour, Colour.RED),
    (Size, Size.BIG),
    (Item, Item("pen", tags=["x"])),
    (Parcel, Parcel((Item("pen"),))),
    (Box[Item], Box(Item("pen"))),
    (Options, {"fast": True}),
    (Row, Row("k")),
    (Crate, Crate(1.5)),
    (Point, Point(1)),
    (list[Point], [Point(1), Point(3, 4)]),
    (Line, Line(Point(1))),
    (tuple[Point, ...], (Point(1),)),
    (tuple[int, Point | None], (1, Point(2))),
    (dict[str, Line], {"a": Line(Point(1), Point(2))}),
    (Order, Order(userId=1, note="n", items=[Item("pen")])),
    (Order, Order(userId=1)),
    (Orders, Orders(orders={"a": Order(userId=1), "b": Order(userId=2, note=None)})),
    (list[Order], [Order(userId=1)]),
    (datetime.datetime, UTC_NOON),
    (datetime.date, datetime.date(2026, 1, 2)),
    (datetime.timedelta, datetime.timedelta(days=-1, microseconds=5)),
    (decimal.Decimal, decimal.Decimal("1.10")),
    (uuid.UUID, uuid.UUID(int=5)),
    (pathlib.Path, pathlib.Path("a/b")),
]


def adapter(hint: Any) -> Adapter:
    found = adapter_for(hint)
    assert found is not None
    return found


@pytest.mark.parametrize(("hint", "value"), FITTING, ids=str)
def test_a_value_comes_back_equal_and_of_its_class(hint: Any, value: Any) -> None:
    data, back = adapter(hint).write(value)

    assert is_same(back, value)
    assert is_same(adapter(hint).read(data), value)


@pytest.mark.parametrize(("hint", "value"), FITTING, ids=str)
def test_no_class_is_named(hint: Any, value: Any) -> None:
    data, _ = adapter(hint).write(value)

    assert not any(cls in data for cls in (b"Item", b"Point", b"Order", b"Row", b"Crate"))


# A hint, a value of it that would come back as another value, the warning, and whether the hint
# is wrong.
MISFITS: list[tuple[Any, Any, str, bool]] = [
    (str, None, "NoneType", True),
    (int, "5", "str", True),
    (list[list[int]], [(1,)], "tuple", True),
    (Point, (1, 2), "tuple", True),
    (Order, {"user_id": 1}, "dict", True),
    (int, True, "bool", False),
    (float, 5, "int", False),
    (dict[str, float], {"a": 5}, "int", False),
    (str, Name.ADA, "Name", False),
    (list[str], [Name.ADA], "Name", False),
    (Item, Special("pen"), "Special", False),
    (list[Item], [Special("pen")], "Special", False),
    (dict[str, int], types.MappingProxyType({}), "no form", False),
    # Correct values for which JSON has no form.
    (float | None, math.nan, "no form", False),
    (datetime.datetime, datetime.datetime(2026, 1, 2, tzinfo=BERLIN), "no form", False),
    (datetime.time, datetime.time(1, fold=1), "no form", False),
    (float, math.inf, "no form", False),
    (str, "\ud800", "no form", False),
    (Item | None, Item("\ud800"), "no form", False),
    (list[float], [1.5, math.nan], "no form", False),
]


@pytest.mark.parametrize(("hint", "value", "named", "is_wrong"), MISFITS, ids=str)
def test_what_would_come_back_as_something_else_is_refused(
    hint: Any, value: Any, named: str, is_wrong: bool
) -> None:
    with pytest.raises(MisfitError) as caught:
        adapter(hint).write(value)

    assert caught.value.is_wrong == is_wrong
    assert named in caught.value.reason


def test_an_abstract_hint_is_right_for_each_class_that_it_allows() -> None:
    assert adapter(Sequence[int]).write([1, 2])[1] == [1, 2]
    with pytest.raises(MisfitError) as caught:
        adapter(Sequence[int]).write((1, 2))

    assert not caught.value.is_wrong


def test_an_attribute_that_is_no_field_is_noticed() -> None:
    item = Item("pen")
    item.colour = "red"  # type: ignore[attr-defined]

    with pytest.raises(MisfitError):
        adapter(Item).write(item)


def test_what_is_computed_again_is_no_part_of_the_value() -> None:
    @dataclasses.dataclass
    class Square:
        side: int

        @functools.cached_property
        def area(self) -> int:
            return self.side**2

    square = Square(2)
    assert square.area == 4

    assert adapter(Square).write(square)[1] == square


def test_a_private_attribute_of_a_model_is_noticed() -> None:
    order = Order(userId=1, note="n", items=[])
    order._seen = 3

    with pytest.raises(MisfitError):
        adapter(Order).write(order)


def test_a_model_knows_which_of_its_fields_were_set() -> None:
    value = Orders(orders={"a": Order(userId=1), "b": Order(userId=2, note=None)})

    back = adapter(Orders).read(adapter(Orders).write(value)[0])

    assert back.model_dump(exclude_unset=True) == {
        "orders": {"a": {"user_id": 1}, "b": {"user_id": 2, "note": None}}
    }


@pytest.mark.parametrize("hint", [Any, object, None, T, Item | Parcel, list["Missing"]], ids=str)  # noqa: F821
def test_some_hints_are_no_way_to_read_a_value(hint: Any) -> None:
    assert adapter_for(hint) is None


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    @dataclasses.dataclass
    class Broken:
        other: Missing  # noqa: F821

    with pytest.raises(NameError, match="Missing"):
        adapter_for(Broken)


# Code that has changed


@dataclasses.dataclass
class Goods:
    name: str
    price: float | None = None
    labels: list[str] = dataclasses.field(default_factory=lambda: ["new"])


class Place(NamedTuple):
    z: int = 9
    x: int = 0


class GoodsModel(BaseModel):
    name: str
    price: float | None = None


class GoodsStruct(msgspec.Struct):
    name: str
    price: float | None = None


@attrs.define
class GoodsAttrs:
    name: str
    price: float | None = None


@pytest.mark.parametrize("changed", [Goods, GoodsModel, GoodsStruct, GoodsAttrs], ids=str)
def test_new_fields_get_their_defaults_and_others_are_ignored(changed: Any) -> None:
    data, _ = adapter(Item).write(Item("pen", 3))

    read = adapter(changed).read(data)

    assert (type(read), read.name, read.price) == (changed, "pen", None)
    assert getattr(read, "labels", ["new"]) == ["new"]


def test_a_named_tuple_is_read_by_the_names_of_its_fields() -> None:
    data, _ = adapter(list[Point]).write([Point(1, 2)])

    assert adapter(list[Place]).read(data) == [Place(9, 1)]


@pytest.mark.parametrize(
    ("hint", "value", "wider", "read"),
    [
        (int, 5, float, 5.0),
        (int, 5, int | str, 5),
        (Item, Item("pen"), Item | None, Item("pen")),
        (list[int], [1], set[int], {1}),
        (str, "red", Colour, Colour.RED),
    ],
    ids=str,
)
def test_a_widened_type_is_read(hint: Any, value: Any, wider: Any, read: Any) -> None:
    assert is_same(adapter(wider).read(adapter(hint).write(value)[0]), read)


@dataclasses.dataclass
class Strict:
    name: str
    owner: str


class StrictModel(BaseModel):
    name: str
    owner: str


@pytest.mark.parametrize("changed", [Strict, StrictModel], ids=str)
def test_a_required_field_that_is_missing_is_named(changed: Any) -> None:
    data, _ = adapter(Item).write(Item("pen"))

    with pytest.raises(DecodeError, match="owner"):
        adapter(changed).read(data)


@pytest.mark.parametrize(
    ("hint", "data"),
    [
        (int, b'"5"'),
        (Item, b'{"name":5}'),
        (Order, b'{"user_id":"1"}'),
        (Point, b"[1,2]"),
        (Colour, b'"green"'),
        (Item, b"{"),
        (Order, b'{"~":[1,2]}'),
        (Order, b'{"~":['),
        (Order, b'{"~":[[[["orders",7],["x"]]],{"user_id":"1"}]}'),
    ],
    ids=str,
)
def test_another_type_and_damage_are_a_decode_error(hint: Any, data: bytes) -> None:
    with pytest.raises(DecodeError):
        adapter(hint).read(data)
