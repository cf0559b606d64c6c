"""Forged rows: reading the record of an error never runs code of the application."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, NoReturn

import httpx
import pytest

from asgi_durable import DecodeError, JsonCodec, RemoteError

RAN: list[str] = []


class Watching(type):
    """A metaclass that records each call of its methods."""

    def __getattribute__(cls, name: str) -> Any:
        RAN.append(f"metaclass {name}")
        return super().__getattribute__(name)

    def __call__(cls, *args: object) -> Any:
        RAN.append("call")
        return super().__call__(*args)

    def __eq__(cls, other: object) -> bool:
        RAN.append("eq")
        return cls is other

    def __hash__(cls) -> int:
        RAN.append("hash")
        return 1

    def __instancecheck__(cls, instance: object) -> bool:
        RAN.append("instancecheck")
        return True

    def __subclasscheck__(cls, subclass: type) -> bool:
        RAN.append("subclasscheck")
        return True


class Loud(Exception, metaclass=Watching):  # noqa: N818
    __slots__ = ("slot",)

    def __new__(cls, *args: object) -> Any:
        RAN.append("new")
        return super().__new__(cls, *args)

    def __init__(self, *args: object) -> None:
        RAN.append("init")

    def __setattr__(self, name: str, value: object) -> None:
        RAN.append(f"set {name}")

    def __getattribute__(self, name: str) -> Any:
        RAN.append(f"get {name}")
        return super().__getattribute__(name)

    def __str__(self) -> str:
        RAN.append("str")
        return "x"

    def __repr__(self) -> str:
        RAN.append("repr")
        return "x"

    def __setstate__(self, state: object) -> None:
        RAN.append("setstate")

    @property
    def text(self) -> str:
        RAN.append("property")
        return "x"

    @text.setter
    def text(self, value: object) -> None:
        RAN.append("setter")


class PathError(OSError):
    pass


@dataclass
class Curious:
    """A registered class that records when the constructor of an exception reads it."""

    number: int = 1

    def __getattribute__(self, name: str) -> Any:
        RAN.append(f"value {name}")
        return super().__getattribute__(name)

    def __index__(self) -> int:
        RAN.append("index")
        return 1

    def __iter__(self) -> Iterator[object]:
        RAN.append("iter")
        return iter(())

    def __repr__(self) -> str:
        RAN.append("value repr")
        return "x"


class Descriptor:
    def __get__(self, instance: object, owner: object) -> type:
        RAN.append("descriptor")
        return ValueError


class Holder:
    @property
    def inner(self) -> NoReturn:
        RAN.append("holder")
        raise AssertionError

    error = Descriptor()
    not_own = ValueError


class LazyModule(ModuleType):
    def __getattribute__(self, name: str) -> Any:
        RAN.append(f"module {name}")
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        RAN.append(f"module {name}")
        return ValueError


class NoModule:
    def __getattribute__(self, name: str) -> Any:
        RAN.append(f"no module {name}")
        return ValueError


def record(name: str, **members: object) -> dict[str, Any]:
    return {"$": "error", "t": name, "m": "x", "a": ["x"], "s": {}, "tb": ""} | members


def read(packed: dict[str, Any], codec: JsonCodec | None = None) -> Any:
    modules = set(sys.modules)
    RAN.clear()
    try:
        return (codec or JsonCodec()).decode(json.dumps(packed).encode())
    finally:
        assert RAN == []
        assert set(sys.modules) == modules


HERE = __name__
# Loaded, so that its classes are found.
assert httpx.Response


@pytest.mark.parametrize("marks", [{"r": True}, {}], ids=["this version's", "an earlier one's"])
def test_nothing_of_a_class_runs_when_its_error_is_read(marks: dict[str, object]) -> None:
    cause = record(f"{HERE}:Loud", **marks)
    members = {"s": {"text": "y", "slot": 1, "other": [2]}, "c": cause, "n": ["note"], "tb": "here"}

    error = read(record(f"{HERE}:Loud", **members, **marks))

    assert type(error) is Loud
    assert vars(error)["text"] == "y"
    assert (error.slot, error.other, type(error.__cause__)) == (1, [2], Loud)


def test_nothing_of_what_is_in_a_module_runs_when_a_name_is_looked_up() -> None:
    for name in ("Holder.inner", "Holder.error", "Holder", "test_crafted_errors", "RAN.append"):
        assert type(read(record(f"{HERE}:{name}", r=True))) is RemoteError


def test_a_class_under_another_name_than_its_own_is_not_taken() -> None:
    for name in (f"{HERE}:Holder.not_own", "asyncio:TimeoutError", "json:JSONDecodeError"):
        assert type(read(record(name, r=True))) is RemoteError


@pytest.mark.parametrize("make", [LazyModule, lambda _: NoModule()], ids=["lazy", "no module"])
def test_a_module_that_loads_when_it_is_looked_into_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[str], Any]
) -> None:
    monkeypatch.setitem(sys.modules, "lazy_shop", make("lazy_shop"))

    assert type(read(record("lazy_shop:ValueError", r=True))) is RemoteError


def test_a_lazy_import_is_not_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("antigravity")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)  # type: ignore[arg-type]
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "antigravity", module)
    spec.loader.exec_module(module)

    assert type(read(record("antigravity:SomeError", r=True))) is RemoteError
    assert type.__getattribute__(type(module), "__name__") == "_LazyModule"


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:object",
        "builtins:SystemExit",
        "builtins:KeyboardInterrupt",
        "builtins:BaseExceptionGroup",
        "builtins:NotThere",
        "not.there:Error",
        ":",
        "",
        "builtins",
        "builtins:ValueError.__mro__",
    ],
)
def test_a_name_of_no_exception_is_a_remote_error(name: str) -> None:
    assert type(read(record(name, r=True))) is RemoteError


@pytest.mark.parametrize("marks", [{"r": True}, {}], ids=["this version's", "an earlier one's"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("builtins:OSError", [1, "x", {}]),
        ("builtins:BlockingIOError", [1, "x", {}]),
        (f"{HERE}:PathError", [1, {}]),
        ("builtins:SyntaxError", ["x", {}]),
        ("builtins:UnicodeDecodeError", ["utf-8", "x", {}, {}, "x"]),
        ("builtins:UnicodeTranslateError", ["x", {}, {}, "x"]),
        ("builtins:ExceptionGroup", ["x", {}]),
        ("builtins:ExceptionGroup", ["x", [{}]]),
        ("builtins:ExceptionGroup", ["x", {"$": "tuple", "v": [{}]}]),
    ],
)
def test_no_built_in_constructor_looks_into_a_value_of_the_applications(
    name: str, arguments: list[Any], marks: dict[str, object]
) -> None:
    codec = JsonCodec()
    codec.register(Curious)
    value = {"$": "dataclass", "t": f"{HERE}:Curious", "v": {"number": 2}}
    filled = json.loads(json.dumps(arguments).replace("{}", json.dumps(value)))

    assert type(read(record(name, a=filled, **marks), codec)) is RemoteError


def test_the_text_of_an_earlier_versions_error_is_not_made_of_the_applications_values() -> None:
    codec = JsonCodec()
    codec.register(Curious)
    value = {"$": "dataclass", "t": f"{HERE}:Curious", "v": {"number": 2}}

    error = read(record("builtins:ValueError", a=[[value]]), codec)

    assert type(error) is ValueError


class Sized(Exception):  # noqa: N818
    __slots__ = ("size",)
    fixed: ClassVar[int] = 1


WRONG: dict[str, list[Any]] = {
    "t": [None, 1, [], {}, ["x"]],
    "m": [None, 1, [], {}],
    "a": [None, 1, "x", {}, {"$": "tuple", "v": []}],
    "s": [None, 1, "x", []],
    "tb": [None, 1, [], {}],
    "n": [None, 1, "x", {}, [1], [None], [["x"]]],
    "c": [1, "x", [], {}, {"a": 1}, {"$": "tuple", "v": []}, {"$": "no tag"}],
    "d": [None, 1, "x", []],
    "r": [None, 1, "x", []],
    "g": [None, 1, "x", {}],
    "e": [None, 1, "x", {}, [], ["x"], ["x", 1], ["x", 1, 2], [[], 1]],
    "u": [None, 1, "x", [], {"x": 1}, {"x": None}],
}
WRONG_VALUES: list[Any] = [
    {"$": "no tag"},
    {"$": []},
    {"$": "held"},
    {"$": "held", "k": "httpx:Client", "v": {}},
    {"$": "held", "k": [], "v": {}},
    {"$": "held", "k": "httpx:Response", "v": {}},
    {"$": "held", "k": "httpx:Response", "v": [1]},
    {"$": "held", "k": "httpx:Request", "v": {"method": 1, "url": 2}},
    {"$": "held", "k": "httpx:Request", "v": {"method": "GET", "url": "http://[:x"}},
    {"$": "unrecorded"},
    {"$": "unrecorded", "v": ["x"]},
    {"$": "unrecorded", "v": [1, 2, 3]},
    {"$": "unrecorded", "v": "xyz1"},
    {"$": "dataclass", "t": "not:there", "v": {}},
    {"$": "error"},
]


@pytest.mark.parametrize("marks", [{"r": True}, {}], ids=["this version's", "an earlier one's"])
@pytest.mark.parametrize(
    ("member", "value"),
    [(name, value) for name, values in WRONG.items() for value in values]
    + [("a", [value]) for value in WRONG_VALUES]
    + [("s", {"name": value}) for value in WRONG_VALUES]
    + [("g", [value]) for value in WRONG_VALUES],
    ids=str,
)
def test_a_member_of_a_wrong_kind_is_a_decode_error(
    member: str, value: Any, marks: dict[str, object]
) -> None:
    if member in {"g", "e"} and not marks:
        marks = {"r": True}

    with pytest.raises(DecodeError):
        read(record("builtins:ValueError", **(marks | {member: value})))


@pytest.mark.parametrize("member", ["t", "m", "tb"])
def test_a_member_that_is_missing_is_a_decode_error(member: str) -> None:
    packed = record("builtins:ValueError", r=True)
    del packed[member]

    with pytest.raises(DecodeError):
        read(packed)


@pytest.mark.parametrize("name", ["__class__", "__dict__", "args", "__traceback__", "__cause__"])
def test_an_attribute_with_a_name_of_pythons_own_changes_nothing(name: str) -> None:
    error = read(record("builtins:ValueError", s={name: "y"}, r=True))

    assert type(error) is ValueError
    assert (error.args, error.__cause__, error.__traceback__) == (("x",), None, None)


def test_a_field_that_takes_numbers_only_is_a_decode_error() -> None:
    packed = record(
        "builtins:UnicodeDecodeError",
        a=["utf-8", {"$": "bytes", "v": "eHg="}, 0, 1, "x"],
        s={"start": "one"},
        r=True,
    )

    with pytest.raises(DecodeError):
        read(packed)


def test_errors_in_errors_without_an_end_are_a_decode_error() -> None:
    text = '{"$":"error","t":"builtins:ValueError","m":"x","a":[],"s":{},"tb":"","r":true,"c":'
    data = text * 5_000 + "null" + "}" * 5_000

    with pytest.raises(DecodeError):
        JsonCodec().decode(data.encode())
