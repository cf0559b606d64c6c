"""Every value that a type hint allows comes back equal, of the same classes, or is refused."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
import zoneinfo
from typing import Any, Literal, NamedTuple, TypedDict

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from asgi_durable import EncodeError, JsonCodec
from asgi_durable.codec.sealing.sealer import Sealer
from asgi_durable.codec.typed.adapters import adapter_for
from asgi_durable.codec.typed.equality import is_same
from asgi_durable.codec.values import Values
from asgi_durable.payloads import Payloads


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Size(enum.IntFlag):
    BIG = 1
    WIDE = 2


class Point(NamedTuple):
    x: int | None
    y: float = 0.0


class Options(TypedDict, total=False):
    fast: bool
    name: str


@dataclasses.dataclass
class Leaf:
    number: int
    text: str | None = None
    when: datetime.datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    leaves: tuple[Leaf, ...]
    points: dict[str, Point]
    colour: Colour
    anything: object = None


@attrs.define
class Crate:
    weight: float
    inner: list[Leaf]


class Row(msgspec.Struct):
    key: bytes
    values: frozenset[int]


class Order(BaseModel):
    number: int
    leaf: Leaf | None = None
    price: decimal.Decimal | None = None
    tags: set[str] = set()


# `object` says nothing about the value.
st.register_type_strategy(
    Order, st.builds(Order, price=st.none() | st.decimals(allow_nan=False, allow_infinity=False))
)
st.register_type_strategy(Tree, st.builds(Tree, anything=st.none() | st.tuples(st.integers())))

HINTS: list[Any] = [
    int,
    str,
    float,
    bytes,
    bool | None,
    dict[str, int | str | None],
    dict[int, list[float]],
    list[tuple[int, str]],
    set[int] | None,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
    Literal["a", 1],
    Colour,
    Size,
    Point,
    list[Point],
    dict[str, Point | None],
    Options,
    Leaf,
    Tree,
    Crate,
    Row,
    Order,
    list[Order],
    Leaf | None,
    Leaf | Tree,
]
# Values that a function may return in spite of its hint.
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from([Colour.RED, Size.BIG, Point(1), Leaf(1), Options(fast=True)])
    | st.datetimes(timezones=st.just(zoneinfo.ZoneInfo("Europe/Berlin")) | st.none()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def new_values() -> Values:
    codec = JsonCodec()
    for hint in HINTS:
        codec.register(hint)
    return Values(codec, Sealer(Payloads()))


VALUES = new_values()
ADAPTERS = {str(hint): adapter_for(hint) for hint in HINTS}


def survives(hint: Any, value: Any) -> None:
    adapter = ADAPTERS[str(hint)]
    try:
        data, back, _ = VALUES.write(value, adapter)
    except EncodeError:
        return
    # NaN is not even equal to itself.
    assert is_same(back, value) or repr(back) == repr(value)
    assert repr(VALUES.read(data, adapter)) == repr(back)


@pytest.mark.parametrize("hint", HINTS, ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_value_of_its_hint_comes_back(hint: Any, data: Any) -> None:
    survives(hint, data.draw(st.from_type(hint)))


@settings(max_examples=150, deadline=None)
@given(hint=st.sampled_from(HINTS), value=ANYTHING)
def test_any_value_comes_back_whatever_the_hint_says(hint: Any, value: Any) -> None:
    survives(hint, value)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), ANYTHING), st.sampled_from(HINTS))
def test_arguments_come_back(arguments: dict[str, Any], hint: Any) -> None:
    adapter = ADAPTERS[str(hint)]
    adapters = {"a": adapter} if adapter is not None else {}
    try:
        data, _ = VALUES.write_arguments(arguments, adapters)
    except EncodeError:
        return

    assert repr(dict(sorted(VALUES.read_arguments(data, adapters).items()))) == repr(
        dict(sorted(arguments.items()))
    )
