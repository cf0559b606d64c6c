"""A step's caller gets the same value in the first run and in a replay, in every part."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import math
import pathlib
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, NamedTuple, NewType, TypedDict

import attrs
import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from support.executors import until
from support.same_values import difference
from support.versions import Code, Defined, Version, finish, leave

from asgi_durable import Durable, EncodeError

pytestmark = [
    pytest.mark.anyio,
    # For values that do not fit their hints.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
]

OSLO = zoneinfo.ZoneInfo("Europe/Oslo")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"


class Mixed(enum.Enum):
    NUMBER = 1
    PAIR = (1, "a")


class Tone(enum.StrEnum):
    DARK = "dark"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Options(TypedDict, total=False):
    size: int
    colour: Colour


@dataclasses.dataclass
class Line:
    price: decimal.Decimal
    count: int = 1


@dataclasses.dataclass
class Special(Line):
    reason: str = "sale"


@dataclasses.dataclass
class Order:
    lines: list[Line]
    at: datetime.datetime
    tags: set[str] = dataclasses.field(default_factory=set)
    total: decimal.Decimal = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.total = sum((one.price * one.count for one in self.lines), decimal.Decimal(0))


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    street: str
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Tree:
    value: int
    children: list[Tree] = dataclasses.field(default_factory=list)


class Inner(BaseModel):
    when: datetime.datetime
    price: decimal.Decimal


class Customer(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = Field(alias="fullName")
    email: str | None = None
    level: int = 3
    inner: list[Inner] = Field(default_factory=list)
    _seen: int = PrivateAttr(default=0)


class Struct(msgspec.Struct):
    number: int
    point: Address | None = None


@attrs.define
class Parcel:
    weight: float
    address: Address


def changed_order() -> Order:
    """Return a model whose computed field has another value."""
    made = order()
    made.total = decimal.Decimal(1)
    return made


def order() -> Order:
    return Order(
        [Line(decimal.Decimal("2.50"), 2)],
        datetime.datetime(2026, 3, 29, 3, 30, tzinfo=OSLO),
        {"a", "b"},
    )


def customer() -> Customer:
    made = Customer.model_validate({"fullName": "Ada", "nick": "A"})
    made._seen = 4
    return made


# The first is the annotation of a step, the second makes its result.
FITTING: dict[str, tuple[Any, Callable[[], Any]]] = {
    "none": (None, lambda: None),
    "bool": (bool, lambda: True),
    "int": (int, lambda: 7),
    "big int": (int, lambda: -(1 << 200)),
    "just beyond 64 bits": (int, lambda: 1 << 63),
    "float": (float, lambda: 0.1),
    "minus zero": (float, lambda: -0.0),
    "nan": (float, lambda: math.nan),
    "infinity": (float, lambda: -math.inf),
    "nan in an optional": (float | None, lambda: math.nan),
    "nan within": (list[float], lambda: [1.0, math.nan]),
    "str": (str, lambda: "høyre \N{GRINNING FACE} \x00 \u2028"),
    "half of a surrogate pair": (str, lambda: "\ud800"),
    "bytes": (bytes, lambda: b"\x00\xff"),
    "no bytes": (bytes, lambda: b""),
    "list": (list[int], lambda: [1, 2]),
    "tuple": (tuple[int, ...], lambda: (1, 2)),
    "tuple of two": (tuple[int, str], lambda: (1, "a")),
    "set": (set[int], lambda: {3, 1}),
    "frozenset": (frozenset[str], lambda: frozenset({"a"})),
    "dict": (dict[str, list[int]], lambda: {"b": [1], "a": []}),
    "dict by number": (dict[int, str], lambda: {1: "a"}),
    "dict by tuple": (dict[tuple[int, int], str], lambda: {(1, 2): "a"}),
    "dict by dates": (dict[datetime.date, int], lambda: {datetime.date(2026, 1, 2): 1}),
    "dollar": (dict[str, str], lambda: {"$": "tuple", "v": "x"}),
    "bare list": (list, lambda: [1, (2, {3})]),
    "any": (Any, lambda: [Colour.RED, (1, b"a"), {1: {2}}]),
    "unannotated": (..., lambda: {"at": datetime.date(2026, 1, 2), "of": (1,)}),
    "date": (datetime.date, lambda: datetime.date(2026, 1, 2)),
    "time": (datetime.time, lambda: datetime.time(1, 2, 3, tzinfo=datetime.UTC)),
    "naive datetime": (datetime.datetime, lambda: datetime.datetime(2026, 1, 2)),  # noqa: DTZ001
    "utc": (datetime.datetime, lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
    "zone": (datetime.datetime, lambda: datetime.datetime(2026, 7, 2, tzinfo=OSLO)),
    "fold": (
        datetime.datetime,
        lambda: datetime.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=OSLO),
    ),
    "offset": (
        datetime.datetime,
        lambda: datetime.datetime(
            2026, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))
        ),
    ),
    "timedelta": (datetime.timedelta, lambda: datetime.timedelta(-1, 2, 3)),
    "long timedelta": (datetime.timedelta, lambda: datetime.timedelta(999_999, 1, 1)),
    "decimal": (decimal.Decimal, lambda: decimal.Decimal("1.500")),
    "decimal nan": (decimal.Decimal, lambda: decimal.Decimal("NaN")),
    "decimal exponent": (decimal.Decimal, lambda: decimal.Decimal("1E+5")),
    "uuid": (uuid.UUID, lambda: uuid.UUID(int=5)),
    "path": (pathlib.Path, lambda: pathlib.Path("a/b")),
    "address": (ipaddress.IPv4Address, lambda: ipaddress.IPv4Address("127.0.0.1")),
    "complex": (complex, lambda: complex(1, math.inf)),
    "enum": (Colour, lambda: Colour.RED),
    "enum of a tuple": (Mixed, lambda: Mixed.PAIR),
    "strenum": (Tone, lambda: Tone.DARK),
    "flag": (Right, lambda: Right.READ | Right.WRITE),
    "new type": (UserId, lambda: UserId(3)),
    "named tuple": (Point, lambda: Point(1, 2.5)),
    "typed dict": (Options, lambda: {"size": 1, "colour": Colour.RED}),
    "dataclass": (Line, lambda: Line(decimal.Decimal("1.10"))),
    "dataclass with __post_init__": (Order, order),
    "dataclass changed since": (Order, changed_order),
    "frozen": (Address, lambda: Address("Elm")),
    "tree": (Tree, lambda: Tree(1, [Tree(2), Tree(3, [Tree(4)])])),
    "union": (Line | Address, lambda: Address("Elm")),
    "union of numbers": (int | float, lambda: 1),
    "union with text": (int | str, lambda: "1"),
    "union of dates": (datetime.date | datetime.datetime, lambda: datetime.date(2026, 1, 2)),
    "model": (Customer, customer),
    "models within": (dict[str, list[Customer]], lambda: {"a": [customer()]}),
    "model with a zone": (
        Inner,
        lambda: Inner(
            when=datetime.datetime(2026, 7, 2, tzinfo=OSLO), price=decimal.Decimal("1.50")
        ),
    ),
    "struct": (Struct, lambda: Struct(1, Address("Elm"))),
    "attrs": (Parcel, lambda: Parcel(1.5, Address("Elm"))),
}

# Parts that the hint does not describe are recorded unchanged.
WRONG: dict[str, tuple[Any, Callable[[], Any]]] = {
    "none for str": (str, lambda: None),
    "str for none": (None, lambda: "a"),
    "str for int": (int, lambda: "1"),
    "bool for int": (int, lambda: True),
    "int for bool": (bool, lambda: 1),
    "int for float": (float, lambda: 1),
    "big int for float": (float, lambda: (1 << 60) + 1),
    "float for int": (int, lambda: 1.0),
    "strenum for str": (str, lambda: Tone.DARK),
    "str for strenum": (Tone, lambda: "dark"),
    "tuple for list": (list[int], lambda: (1, 2)),
    "list for tuple": (tuple[int, ...], lambda: [1, 2]),
    "set for list": (list[int], lambda: {1, 2}),
    "named tuple for tuple": (tuple[int, float], lambda: Point(1, 2.5)),
    "tuple for named tuple": (Point, lambda: (1, 2.5)),
    "ints in a list of floats": (list[float], lambda: [1, 2.0]),
    "bools in a list of ints": (list[int], lambda: [True, 0]),
    "another key": (dict[str, int], lambda: {1: 2}),
    "dict for a dataclass": (Line, lambda: {"price": "1", "count": 1}),
    "dataclass for dict": (dict[str, Any], lambda: Line(decimal.Decimal(1))),
    "subclass": (Line, lambda: Special(decimal.Decimal(1), 2)),
    "subclass within": (
        list[Line],
        lambda: [Line(decimal.Decimal(1)), Special(decimal.Decimal(2))],
    ),
    "wrong member": (Address, lambda: Address(7)),  # type: ignore[arg-type]
    "int in a float's place": (Parcel, lambda: Parcel(1, Address("Elm"))),
    "datetime for date": (
        datetime.date,
        lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    ),
    "str for datetime": (datetime.datetime, lambda: "2026-01-02T00:00:00Z"),
    "float for decimal": (decimal.Decimal, lambda: 1.5),
    "another key in a typed dict": (Options, lambda: {"size": 1, "more": 2}),
    "model of wrong members": (
        Inner,
        lambda: Inner.model_construct(when="soon", price=decimal.Decimal(1)),
    ),
    "dict for a model": (Inner, lambda: {"when": 1}),
}

CASES = FITTING | WRONG


class Run:
    """A workflow for each case; it gets the value as its argument and from a step.

    Args:
        url: The database.
        waits: True if each workflow waits for ever when it has both.

    Attributes:
        seen: For each case, the argument and the step's result, or the error.
    """

    def __init__(self, url: str, *, waits: bool) -> None:
        self.durable = Durable(url, drain_timeout=0.0)
        self.seen: dict[str, Any] = {}
        self._waits = waits
        self._held: set[str | None] = set()
        # Classes that the annotations of some cases do not name.
        for cls in (Special, Line, Point, Colour, Tone):
            self.durable.register_type(cls)
        self._hold = self.durable.step(name="hold")(self._wait)
        self._workflows = {name: self._define(name, *case) for name, case in CASES.items()}

    async def begin(self) -> None:
        """Start all workflows, and stop when each has its value."""
        async with self.durable as durable:
            for name, (_, make) in CASES.items():
                try:
                    with_id = durable.options(workflow_id=name)
                    await with_id.start_workflow(self._workflows[name], make())
                except EncodeError as error:
                    self.seen[name] = error
            # When its body begins, all earlier records are durable.
            await until(lambda: self._held | self._refused() == CASES.keys())

    async def finish(self) -> None:
        """Continue all workflows."""
        async with self.durable:
            await until(lambda: self.seen.keys() == CASES.keys())

    async def _wait(self) -> None:
        self._held.add(self.durable.workflow_id)
        if self._waits:
            await asyncio.Event().wait()

    def _refused(self) -> set[str]:
        return {name for name, seen in self.seen.items() if isinstance(seen, EncodeError)}

    def _define(self, name: str, hint: Any, make: Callable[[], Any]) -> Any:
        async def make_it():  # type: ignore[no-untyped-def]
            if not self._waits:
                raise AssertionError(name)
            return make()

        async def work(value):  # type: ignore[no-untyped-def]
            try:
                self.seen[name] = value, await step()
            except Exception as error:
                self.seen[name] = error
            await self._hold()

        make_it.__annotations__ = {} if hint is ... else {"return": hint}
        work.__annotations__ = {} if hint is ... else {"value": hint}
        step = self.durable.step(name=f"make {name}", retry=None)(make_it)
        return self.durable.workflow(name=name)(work)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values that the workflows of all cases have seen, in their first run and in a replay."""
    url = f"sqlite:///{tmp_path_factory.mktemp('runs')}/test.db"
    first, replay = Run(url, waits=True), Run(url, waits=False)
    asyncio.run(first.begin())
    replay.seen |= {name: seen for name, seen in first.seen.items() if isinstance(seen, Exception)}
    asyncio.run(replay.finish())
    return first.seen, replay.seen


@pytest.mark.parametrize("case", CASES)
def test_both_get_what_was_given_and_what_a_step_has_returned(
    runs: tuple[dict[str, Any], dict[str, Any]], case: str
) -> None:
    _, make = CASES[case]
    first, replay = runs

    assert difference(first[case], (make(), make())) == ""
    assert difference(replay[case], (make(), make())) == ""


def see_twice(code: Code) -> Defined:
    """Define a workflow that records a step's result before and after its interruption."""
    make = code.step("make", code.make, **{"return": code.version.hint})

    async def work() -> None:
        code.seen.append(await make())
        await code.hold()

    return code.workflow("work", work), tuple


async def test_what_nobody_has_set_in_a_model_stays_unset(url: str) -> None:
    await leave(first := Code(see_twice, Version(Customer, customer), url, waits=True))
    await finish(replay := Code(see_twice, Version(Customer, customer), url))

    for value in (*first.seen, *replay.seen):
        assert value.model_dump(exclude_unset=True) == {"name": "Ada", "nick": "A"}
        assert (value._seen, value.model_extra) == (4, {"nick": "A"})


CHANGED: dict[str, tuple[Any, Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (list[int], lambda: [1], lambda value: value.append(2)),
    "dict": (dict[str, list[int]], lambda: {"a": [1]}, lambda value: value["a"].append(2)),
    "unannotated": (..., lambda: {"a": [1]}, lambda value: value["a"].clear()),
    "set": (set[int], lambda: {1}, lambda value: value.add(2)),
    "dataclass": (Order, order, lambda value: value.lines.clear()),
    "model": (Customer, customer, lambda value: setattr(value, "email", "changed")),
    "struct": (Struct, lambda: Struct(1), lambda value: setattr(value, "number", 2)),
    "wrong": (tuple[int, ...], lambda: [1], lambda value: value.append(2)),
}


@pytest.mark.parametrize("kind", CHANGED)
async def test_what_the_caller_does_to_a_result_is_done_to_its_own(url: str, kind: str) -> None:
    hint, make, change = CHANGED[kind]
    kept = make()

    def change_it(code: Code) -> Defined:
        # The body holds on to its result, as a cache would.
        async def body() -> Any:
            return kept

        step = code.step("make", body, **({} if hint is ... else {"return": hint}))

        async def work() -> None:
            value = await step()
            code.seen.append(difference(value, make()))
            change(value)
            code.seen.append(value is kept)
            await code.hold()

        return code.workflow("work", work), tuple

    await leave(first := Code(change_it, Version(hint, make), url, waits=True))
    await finish(replay := Code(change_it, Version(hint, make), url))

    assert first.seen == replay.seen == ["", False]
    assert difference(kept, make()) == ""


def change_argument(code: Code) -> Defined:
    """Define a workflow that changes its argument."""

    async def work(given: Any) -> None:
        code.seen.append(list(given))
        given.append(2)
        await code.hold()
        code.seen.append(list(given))

    return code.workflow("work", work, given=list[int]), lambda: ([1],)


async def test_what_a_workflow_does_to_its_input_is_done_to_its_own(url: str) -> None:
    await leave(first := Code(change_argument, Version(None, lambda: None), url, waits=True))
    await finish(replay := Code(change_argument, Version(None, lambda: None), url))

    assert (first.seen, replay.seen) == ([[1]], [[1], [1, 2]])
