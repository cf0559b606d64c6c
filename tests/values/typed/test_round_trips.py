"""Every accepted value comes back equal, of the same classes, at any depth."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import math
import pathlib
import zoneinfo
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import msgspec
import pydantic.dataclasses
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, HttpUrl, PostgresDsn, PrivateAttr

from asgi_durable import EncodeError, JsonCodec
from asgi_durable.codec.types import members_of

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    CRIMSON = RED
    LIST = ["not", "hashable"]  # noqa: RUF012  that is the point
    NONE = None


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Word(enum.StrEnum):
    YES = "yes"


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    ADMIN = 8


class Mode(enum.IntFlag):
    A = 1
    B = 4


class Point(NamedTuple):
    x: Any
    y: Any = None


OldPoint = collections.namedtuple("OldPoint", ["a", "b"])  # noqa: PYI024  it is recorded, too


@dataclasses.dataclass
class Base:
    one: Any
    rest: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Derived(Base):
    two: Any = None
    scale: dataclasses.InitVar[int] = 1
    count: int = dataclasses.field(init=False, default=5)
    made: int = dataclasses.field(init=False)

    def __post_init__(self, scale: int) -> None:
        self.made = scale

    @functools.cached_property
    def computed(self) -> int:
        return 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    name: Any
    size: Any = Size.SMALL


@dataclasses.dataclass(slots=True)
class WideKey(Base):
    extra: Any = None


@pydantic.dataclasses.dataclass
class Checked:
    number: int
    more: Any = Field(default=None, alias="moreOfIt")


@attrs.define
class Parcel:
    weight: Any
    rest: list[Any] = attrs.field(factory=list)


@attrs.frozen(slots=False)
class Label:
    _text: Any


class Struct(msgspec.Struct, frozen=True, tag=True):
    number: Any
    more: Any = None


class Model(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)
    user_id: Any = Field(alias="userId")
    other: Any = None
    inner: Model | None = None
    _note: Any = PrivateAttr(default=None)
    _unset: int = PrivateAttr()


class Page(BaseModel, Generic[T]):
    items: list[T]


CLASSES = (
    *(Colour, Size, Word, Right, Mode, Point, OldPoint, Base, Derived, Key, WideKey, Checked),
    *(Parcel, Label, Struct, Model, Page[int], HttpUrl, AnyUrl, PostgresDsn),
)


def new_codec() -> JsonCodec:
    codec = JsonCodec()
    for cls in CLASSES:
        codec.register(cls)
    return codec


def parts(value: Any) -> Any:
    """Return the parts of a value, also those that ``==`` ignores."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        shown: Any = value._name_, value._value_
    elif isinstance(value, (set, frozenset)):
        shown = sorted(map(repr, map(parts, value)))
    elif isinstance(value, slice):
        shown = parts([value.start, value.stop, value.step])
    elif isinstance(value, (tuple, list, collections.deque)):
        shown = getattr(value, "maxlen", None), [parts(item) for item in value]
    elif isinstance(value, dict):
        pairs = [(parts(key), parts(item)) for key, item in value.items()]
        shown = getattr(value, "default_factory", None), pairs
    elif isinstance(value, BaseModel):
        private = sorted((value.__pydantic_private__ or {}).items())
        shown = parts([vars(value), value.model_extra, sorted(value.model_fields_set), private])
    elif dataclasses.is_dataclass(value):
        shown = [parts(getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif kind in (Parcel, Label, Struct):
        names = members_of(kind)
        shown = [parts(getattr(value, name)) for name in names]
    elif isinstance(value, (datetime.datetime, datetime.time)):
        shown = value.isoformat(), value.fold, repr(value.tzinfo)
    else:
        shown = repr(value)
    return kind, shown


def model(other: Any, extra: dict[str, Any], note: Any, inner: Any) -> Model:
    made = Model.model_validate({"userId": 1, "other": other, "inner": inner, **extra})
    made._note = note
    return made


ZONES = st.none() | st.timezones() | st.just(datetime.UTC)
OFFSETS = st.timedeltas(
    min_value=datetime.timedelta(hours=-23), max_value=datetime.timedelta(hours=23)
)
FIXED = st.builds(datetime.timezone, OFFSETS) | st.builds(
    datetime.timezone, OFFSETS, st.text(max_size=5)
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=10)
    | st.text(st.sampled_from('a\x7f\ud83d\ude00ä\n"$\\'), max_size=6)
    | st.binary(max_size=10)
    | st.binary(max_size=10).map(bytearray)
    | st.decimals()
    | st.fractions()
    | st.complex_numbers(allow_nan=False)
    | st.datetimes(timezones=ZONES | FIXED, allow_imaginary=True)
    | st.times(timezones=ZONES | FIXED)
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.ip_addresses()
    | FIXED
    | st.timezones()
    | st.sampled_from(
        [*Colour, *Size, *Word, Right.READ | Right.ADMIN, Right(0), Mode(5), Mode(16)]
    )
    | st.sampled_from(
        [range(3), range(5, -(2**70), -2), pathlib.Path("a/ä"), HttpUrl("http://ä.de")]
    )
)
KEYS = (
    st.text(max_size=5)
    | st.integers()
    | st.tuples(st.integers())
    | st.sampled_from([*Size, *Word, "$"])
    | st.text(max_size=3).map(lambda name: Key(name=name))
)


def made(make: Callable[..., Any], *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return values that a function makes; `builds` would look for more arguments by itself."""
    return st.tuples(*arguments).map(lambda each: make(*each))


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, max_size=3)
    mapping = st.dictionaries(KEYS, inner, max_size=3)
    texts = st.dictionaries(st.text(max_size=5), inner, max_size=3)
    extra = st.dictionaries(st.sampled_from(["more", "user_id_2", "$"]), inner, max_size=2)
    return (
        few
        | mapping
        | texts
        | few.map(tuple)
        | st.frozensets(KEYS, max_size=3)
        | st.sets(KEYS, max_size=3)
        | st.builds(collections.deque, few, st.none() | st.integers(0, 5))
        | mapping.map(collections.OrderedDict)
        | mapping.map(lambda each: collections.defaultdict(list, each))
        | st.dictionaries(KEYS, st.integers(), max_size=3).map(collections.Counter)
        | made(slice, inner, inner)
        | made(Point, inner)
        | made(OldPoint, inner, inner)
        | made(Base, inner, few)
        | made(lambda one, two, scale: Derived(one, two=two, scale=scale), inner, inner, KEYS)
        | made(lambda name: Key(name=name), inner)
        | made(lambda one, extra: WideKey(one, extra=extra), inner, inner)
        | made(lambda number, more: Checked(number, moreOfIt=more), st.integers(), inner)
        | made(Parcel, inner, few)
        | made(Label, inner)
        | made(Struct, inner, inner)
        | made(model, inner, extra, inner, st.none() | st.just(Model(userId=2)))
        | made(lambda items: Page[int](items=items), st.lists(st.integers(), max_size=2))
    )


@given(st.recursive(SCALARS, containers, max_leaves=12))
def test_a_value_comes_back_or_is_refused(value: Any) -> None:
    codec = new_codec()
    try:
        data = codec.encode(value)
    except EncodeError as error:
        # No other value that is made here is refused.
        if "surrogate" not in str(error):
            raise
        return

    restored = codec.decode(data)

    assert parts(restored) == parts(value)
    assert codec.encode(restored) == data


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.Counter("abca"),
        collections.defaultdict(None, {"a": 1}),
        collections.defaultdict(set, {1: {2}}),
        collections.deque([1, (2,)], maxlen=3),
        fractions.Fraction(-(10**3000), 7),
        range(0, 10**30, 3),
        slice(None, 5),
        bytearray(b"\x00\xff"),
        datetime.timezone(datetime.timedelta(hours=1), "CET"),
        datetime.UTC,
        zoneinfo.ZoneInfo("Europe/Berlin"),
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("fe80::/64"),
        ipaddress.ip_interface("10.0.0.1/8"),
        ipaddress.ip_address("fe80::1%eth0"),
        pathlib.PurePosixPath("/a/b"),
        pathlib.PureWindowsPath("C:\\a"),
        decimal.Decimal("sNaN"),
        decimal.Decimal("-NaN123"),
        decimal.Decimal("-0E+5"),
        PostgresDsn("postgres://a:b@one:1,two:2/db"),
        AnyUrl("ftp://example.org/a b"),
        Derived(1, two=2, scale=3),
        Mode(5),
        Mode(64),
        Right(0),
        Page[int](items=[1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_these_come_back(value: Any) -> None:
    codec = new_codec()

    restored = codec.decode(codec.encode(value))

    assert parts(restored) == parts(value)


def test_two_members_that_are_no_numbers_come_back() -> None:
    restored = new_codec().decode(new_codec().encode([{math.nan, float("nan")}, {math.nan: 1}]))

    assert [len(each) for each in restored] == [2, 1]


def test_an_object_without_equality_is_a_key_of_its_own() -> None:
    @dataclasses.dataclass(eq=False)
    class Identity:
        number: int

    codec = JsonCodec()
    codec.register(Identity)

    restored = codec.decode(codec.encode({Identity(1), Identity(1)}))

    assert [each.number for each in restored] == [1, 1]
