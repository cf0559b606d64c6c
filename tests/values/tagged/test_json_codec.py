"""The default codec: equal values of equal types come back, or the value is refused."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import math
import pathlib
import threading
import uuid
import zoneinfo
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, HttpUrl

from asgi_durable import DecodeError, EncodeError, JsonCodec


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    street: str
    colour: Colour


@dataclasses.dataclass
class Person:
    name: str
    addresses: list[Address]
    computed: int = dataclasses.field(init=False, default=7)


class Inner(BaseModel):
    when: datetime.datetime
    price: decimal.Decimal


class Order(BaseModel):
    user_id: Annotated[str, Field(alias="userId")]
    inner: Inner
    tags: set[str] = set()


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
VALUES: list[Any] = [
    None,
    True,
    0,
    -(2**63),
    2**63,
    -(10**5000),
    1.5,
    -0.0,
    math.inf,
    "text",
    "\x00 and \ud800",
    b"\x00\xff",
    [1, [2, (3,)]],
    (),
    (1, "a"),
    {"a": {"b": 1}},
    {"$": "not a tag"},
    {1: "int key", (2, 3): "tuple key"},
    {"x", "y"},
    frozenset({1, 2}),
    1 + 2j,
    datetime.date(2026, 1, 2),
    datetime.time(1, 2, 3, fold=1),
    datetime.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    datetime.timedelta(days=-1, microseconds=5),
    datetime.time(1, 2, tzinfo=BERLIN),
    ipaddress.ip_address("127.0.0.1"),
    ipaddress.ip_address("::1"),
    HttpUrl("https://example.org/a?b=c"),
    uuid.UUID(int=5),
    decimal.Decimal("1.10"),
    pathlib.Path("a/b"),
    Colour.RED,
    Level.HIGH,
    Right.READ | Right.WRITE,
    Point(1, 2),
    Address("s", Colour.RED),
    Person("n", [Address("s", Colour.RED)]),
    Order(
        userId="u",
        inner=Inner(when=datetime.datetime(2026, 1, 1), price=decimal.Decimal("9.90")),  # noqa: DTZ001
        tags={"a"},
    ),
]


@pytest.fixture
def codec() -> JsonCodec:
    codec = JsonCodec()
    for hint in (Person, Order, Level, Right, Point, HttpUrl):
        codec.register(hint)
    return codec


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_a_value_comes_back_equal_and_of_its_type(codec: JsonCodec, value: object) -> None:
    restored = codec.decode(codec.encode(value))

    assert restored == value
    assert type(restored) is type(value)
    # -0.0 equals 0.0, and equality ignores a fold.
    assert str(codec.encode(restored)) == str(codec.encode(value))


def test_nan_comes_back(codec: JsonCodec) -> None:
    assert math.isnan(codec.decode(codec.encode(math.nan)))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.uuids(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers() | st.text())
    ),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_any_value_comes_back(value: object) -> None:
    codec = JsonCodec()

    restored = codec.decode(codec.encode(value))

    assert restored == value
    assert type(restored) is type(value)


@given(st.binary(max_size=60) | st.text().map(str.encode))
def test_damaged_bytes_are_a_decode_error_and_nothing_else(data: bytes) -> None:
    codec = JsonCodec()
    try:
        codec.decode(data)
    except DecodeError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b'{"$":"unknown"}',
        b'{"$":"enum","t":"os:system","v":"x"}',
        b'{"$":"bytes","v":"%%"}',
        b'{"$":"datetime"}',
        b'{"$":[]}',
        b'{"$":"dict","v":[[[],1]]}',
        b"[" * 100_000,
    ],
)
def test_bytes_that_nobody_wrote_are_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        JsonCodec().decode(data)


def test_the_bytes_of_a_set_do_not_depend_on_its_order() -> None:
    codec = JsonCodec()

    assert codec.encode({"a", "b", "c"}) == codec.encode({"c", "b", "a"})
    assert codec.encode({"a", "b", "c"}) == b'{"$":"set","v":["a","b","c"]}'


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (threading.Lock(), "the value itself"),
        ({"a": [1, threading.Lock()]}, "['a'][1]"),
        ({"p": Person("n", [])}, "['p']"),
        (Text("subclass"), "the value itself"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_its_place(value: object, path: str) -> None:
    with pytest.raises(EncodeError) as caught:
        JsonCodec().encode(value)

    assert path in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)

    with pytest.raises(EncodeError, match="nested"):
        JsonCodec().encode(value)


class App:
    def __init__(self) -> None:
        self.me = self


def test_an_object_that_refers_to_itself_is_refused() -> None:
    with pytest.raises(EncodeError, match="App"):
        JsonCodec().encode({"app": App()})


def test_a_member_that_was_never_set_is_refused(codec: JsonCodec) -> None:
    person = Person("n", [])
    del person.name

    with pytest.raises(EncodeError, match="name"):
        codec.encode(person)


def test_classes_are_found_in_annotations_however_deep(codec: JsonCodec) -> None:
    found = JsonCodec()
    found.register(dict[str, tuple[Person, ...] | None])

    value = [Person("n", [Address("s", Colour.RED)])]
    assert found.decode(found.encode(value)) == value
