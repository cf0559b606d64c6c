"""Forged rows: they run no code, import no module, and at worst raise a ``DecodeError``."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, HttpUrl, PrivateAttr, model_validator

from asgi_durable import DecodeError, JsonCodec

CALLS: list[str] = []


def noted(name: str) -> Callable[..., Any]:
    def method(*_: Any, **__: Any) -> Any:
        CALLS.append(name)
        msg = f"{name} has run"
        raise RuntimeError(msg)

    return method


@dataclasses.dataclass
class Order:
    number: int
    note: Any = None

    __new__ = noted("__new__")
    __post_init__ = noted("__post_init__")
    __setattr__ = noted("__setattr__")
    __getattribute__ = noted("__getattribute__")
    __setstate__ = noted("__setstate__")
    __float__ = noted("__float__")
    __index__ = noted("__index__")
    total = property(noted("total"), noted("total"))


class Pair(NamedTuple):
    left: int
    right: int


class OpenPair(Pair):
    __new__ = noted("__new__")
    _make = classmethod(noted("_make"))


class Colour(enum.Enum):
    RED = "red"
    _missing_ = classmethod(noted("_missing_"))


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    _missing_ = classmethod(noted("_missing_"))


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    number: int
    _note: str = PrivateAttr(default="none")

    __new__ = noted("__new__")
    __setstate__ = noted("__setstate__")
    __setattr__ = noted("__setattr__")
    model_post_init = noted("model_post_init")

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: Any) -> Any:
        return noted("check")(data)


@attrs.define
class Parcel:
    weight: int = attrs.field(validator=noted("validator"), converter=noted("converter"))

    __new__ = noted("__new__")
    __attrs_post_init__ = noted("__attrs_post_init__")
    __setstate__ = noted("__setstate__")


class Struct(msgspec.Struct):
    number: int
    more: Any = None


class StructWithCode(msgspec.Struct):
    number: int

    # Not a function, but callable.
    __post_init__ = staticmethod(functools.partial(noted("__post_init__")))


CLASSES = (Order, OpenPair, Colour, Right, Model, HttpUrl, Parcel, Struct, StructWithCode)


@pytest.fixture
def codec() -> JsonCodec:
    codec = JsonCodec()
    for cls in CLASSES:
        codec.register(cls)
    CALLS.clear()
    return codec


def row(tag: str, cls: type | None, content: object, **members: object) -> bytes:
    named = {} if cls is None else {"t": f"{cls.__module__}:{cls.__qualname__}"}
    return json.dumps({"$": tag, **named, "v": content, **members}).encode()


STATE = {
    "__dict__": {"number": "no number", "__class__": 1, "check": 2},
    "__pydantic_extra__": {"model_config": 1},
    "__pydantic_fields_set__": {"$": "set", "v": ["number", "unknown"]},
    "__pydantic_private__": {"_note": 5, "_other": 6},
}


def test_nothing_of_a_class_runs_when_a_value_is_rebuilt(codec: JsonCodec) -> None:
    members = {"number": 1, "total": 5, "__class__": 5, "__dict__": {}, "other": 6}
    order = codec.decode(row("dataclass", Order, members))
    pair = codec.decode(row("namedtuple", OpenPair, [1, 2]))
    colour = codec.decode(row("enum", Colour, "RED"))
    rights = codec.decode(row("flag", Right, 3))
    model = codec.decode(row("model", Model, STATE))
    parcel = codec.decode(row("attrs", Parcel, {"weight": "no number", "__class__": 1}))
    struct = codec.decode(row("struct", Struct, {"number": "none", "__post_init__": 1}))
    with pytest.raises(DecodeError, match=r"StructWithCode cannot be rebuilt.*would run"):
        codec.decode(row("struct", StructWithCode, {"number": 1}))

    assert CALLS == []
    assert (type(parcel), parcel.weight) == (Parcel, "no number")
    assert struct == Struct("none", None)  # type: ignore[arg-type]
    assert type(order) is Order
    assert object.__getattribute__(order, "__dict__") == {"number": 1, "note": None}
    assert type(pair) is OpenPair
    assert tuple(pair) == (1, 2)
    assert colour is Colour.RED
    assert rights == Right.READ | Right.WRITE
    assert type(model) is Model
    assert vars(model) == {"number": "no number"}
    assert model.model_extra == {"model_config": 1}
    assert model.model_fields_set == {"number"}
    assert model.__pydantic_private__ == {"_note": 5}


@dataclasses.dataclass(frozen=True)
class Lookalike:
    """A value that looks like the text "number" in a set until it is compared."""

    def __hash__(self) -> int:
        return hash("number")

    __eq__ = noted("__eq__")


def test_what_is_put_into_a_set_is_compared_with_nothing_else(codec: JsonCodec) -> None:
    codec.register(Lookalike)
    key = json.loads(row("dataclass", Lookalike, {}))
    fields_set = {"$": "set", "v": [key]}

    model = codec.decode(row("model", Model, STATE | {"__pydantic_fields_set__": fields_set}))

    assert model.model_fields_set == set()
    assert CALLS == []


NESTED_ORDER = {"$": "dataclass", "t": f"{__name__}:Order", "v": {"number": 1}}
WRONG_MEMBERS: list[Any] = [
    None,
    True,
    5,
    -1,
    1e308,
    "",
    "x",
    "../../../etc/passwd",
    "9" * 5000,
    "2026-13-45T99:99",
    [],
    [[]],
    [[1]],
    [1, 2, 3, 4, 5, 6, 7, 8],
    ["a", "b", "c"],
    [10**18, 10**18, 10**18],
    [[[], 1]],
    ["ab"],
    {},
    {"number": 1},
    {"__dict__": 5},
    {"__dict__": {"number": 1}, "__pydantic_extra__": [1]},
    {"__dict__": {"number": 1}, "__pydantic_private__": "x"},
    {"__dict__": {"number": 1}, "__pydantic_fields_set__": [[]]},
    {"$": "tuple"},
    {"$": "set", "v": [[]]},
    NESTED_ORDER,
    [NESTED_ORDER],
    [NESTED_ORDER, NESTED_ORDER, NESTED_ORDER],
    {"$": "float", "v": "nan"},
]
TAGS = [
    *("int", "float", "dict", "tuple", "set", "frozenset", "deque", "defaultdict"),
    *("ordereddict", "counter", "bytes", "bytearray", "complex", "range", "slice", "fraction"),
    *("datetime", "date", "time", "timedelta", "timezone", "zone", "uuid", "decimal"),
    *("posixpath", "windowspath", "path", "ip", "ipinterface", "ipnetwork"),
    *(
        "enum",
        "flag",
        "url",
        "namedtuple",
        "model",
        "dataclass",
        "attrs",
        "struct",
        "unknown",
        "",
        "__class__",
    ),
]


def read(codec: JsonCodec, data: bytes) -> None:
    """Read a row; it may be readable, but no error other than ``DecodeError`` is allowed."""
    try:
        codec.decode(data)
    except DecodeError:
        pass


def test_every_tag_is_tried(codec: JsonCodec) -> None:
    assert {*codec._unpackers} - {"error"} <= {*TAGS}


@pytest.mark.parametrize("tag", TAGS)
def test_wrong_members_are_a_decode_error_and_run_nothing(codec: JsonCodec, tag: str) -> None:
    modules = dict(sys.modules)
    for content in WRONG_MEMBERS:
        for cls in (None, *CLASSES):
            read(codec, row(tag, cls, content))
            read(codec, row(tag, cls, content, fold=7, zone="../x", maxlen=-1, factory="open"))
            read(codec, row(tag, cls, content, fold=[], zone=[], maxlen="1", factory=[], tzname=1))
            read(codec, row(tag, cls, content, f=["left", "right"]))
            read(codec, row(tag, cls, content, f=content))
    for named in (5, None, [], {}, "os:system", "os.path:join", f"{__name__}:CALLS", "a:b.c"):
        read(codec, json.dumps({"$": tag, "t": named, "v": {}}).encode())

    # A class may do one thing only: hash a member of a set, or a key.
    assert CALLS == []
    assert sys.modules == modules


@pytest.mark.parametrize(
    "data",
    [
        b'{"$":null}',
        b'{"$":["tuple"],"v":[]}',
        b'{"$":"tuple"}',
        b'{"$":"int","v":5}',
        b'{"$":"decimal","v":"no number"}',
        b'{"$":"decimal","v":1.5}',
        b'{"$":"tuple","v":"abc"}',
        b'{"$":"dict","v":["ab"]}',
        b'{"$":"timedelta","v":[1e308]}',
        b'{"$":"timedelta","v":[999999999999]}',
        b'{"$":"ip","v":5}',
        b'{"$":"fraction","v":[1,0]}',
        b'{"$":"defaultdict","v":[],"factory":"eval"}',
        b'{"\\u0024":"unknown"}',
        b"NaN",
        b'["\\ud800",Infinity]',
        b"{}{}",
        b"",
        b"\xff",
        b'"\xff\\ud800"',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"$":"tuple","v":[' * 20_000 + b"]}" * 20_000,
    ],
)
def test_a_damaged_row_is_a_decode_error(codec: JsonCodec, data: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.decode(data)


def test_a_tag_that_comes_twice_is_the_last_one(codec: JsonCodec) -> None:
    assert codec.decode(b'{"$":"set","$":"tuple","v":[1],"more":5}') == (1,)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/localtime",
        "/etc/localtime",
        "Europe/../Europe/Berlin",
        "",
        ".",
        "Europe",
        "Europe/",
        "no.such.package/Zone",
        "this/Zone",
        "Europe/Berlin\x00",
        "Europe\\Berlin",
        "zone.tab",
        "tzdata.zi",
        "leapseconds",
        "a" * 10_000,
        5,
        ["Europe/Berlin"],
    ],
)
def test_an_odd_zone_is_no_path_and_no_package(
    codec: JsonCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    # A package that ZoneInfo itself would import for this name.
    for package in ("tzdata", "tzdata/zoneinfo", "tzdata/zoneinfo/this", "tzdata/zoneinfo/Europe"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    modules = dict(sys.modules)

    for tag in ("datetime", "time", "zone"):
        text = {"datetime": "2026-01-01T00:00:00", "time": "00:00:00", "zone": name}[tag]
        with pytest.raises(DecodeError):
            codec.decode(row(tag, None, text, zone=name))

    assert sys.modules == modules


class LazyModule(ModuleType):
    """A module that loads itself when its attributes are read."""

    def __getattribute__(self, name: str) -> Any:
        if name != "__class__":
            CALLS.append(name)
        return super().__getattribute__(name)


def test_no_module_is_looked_into(codec: JsonCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a_lazy_module", LazyModule("a_lazy_module"))
    CALLS.clear()

    for tag in ("dataclass", "enum", "flag", "model", "namedtuple", "url"):
        with pytest.raises(DecodeError, match="not known in this process"):
            codec.decode(json.dumps({"$": tag, "t": "a_lazy_module:Order", "v": {}}).encode())

    assert CALLS == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_fault_of_the_row_is_passed_on(error: type[BaseException]) -> None:
    def fail() -> int:
        raise error

    @dataclasses.dataclass
    class Today:
        more: int = dataclasses.field(default_factory=fail)

    codec = JsonCodec()
    codec.register(Today, name="today")
    with pytest.raises(error):
        codec.decode(b'{"$":"dataclass","t":"today","v":{}}')


def _mixed_codec() -> JsonCodec:
    codec = JsonCodec()
    for cls in CLASSES:
        codec.register(cls)
    return codec


WRITTEN = [
    row("dataclass", Order, {"number": 1, "note": {"$": "tuple", "v": [1]}}),
    row("namedtuple", OpenPair, [1, 2]),
    row("flag", Right, 3),
    row("model", Model, STATE),
    row("url", HttpUrl, "https://example.org/"),
    JsonCodec().encode(
        [
            datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
            datetime.timedelta(1),
            b"abc",
            {1: (2,), "$": {3.5}},
        ]
    ),
    row("datetime", None, "2026-10-25T02:30:00+01:00", zone="Europe/Berlin", fold=1),
]
_PIECES = st.sampled_from(
    [b'"', b"{", b"}", b"[", b"]", b",", b"$", b"\\", b"0", b"null", b"-1e999", b'"tuple"', b"\xff"]
)


@given(
    st.sampled_from(WRITTEN),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4), _PIECES), max_size=4),
)
def test_a_row_that_was_changed_anywhere_is_read_or_a_decode_error(
    data: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    codec = _mixed_codec()
    for place, length, piece in changes:
        data = data[:place] + piece + data[place + length :]

    read(codec, data)


MEMBERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(TAGS),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["$", "t", "v", "zone", "fold", "factory", "__dict__"]), inner
        )
    ),
    max_leaves=12,
)
NAMES = st.sampled_from([f"{cls.__module__}:{cls.__qualname__}" for cls in CLASSES])


@given(st.sampled_from(TAGS), NAMES, MEMBERS)
def test_a_row_of_any_members_is_read_or_a_decode_error(tag: str, name: str, member: Any) -> None:
    read(_mixed_codec(), json.dumps({"$": tag, "t": name, "v": member}).encode())
