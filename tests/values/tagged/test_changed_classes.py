"""Values whose class has changed since they were recorded, with and without a registered name."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import pydantic.dataclasses
import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel
from pydantic import Field as PydanticField

from asgi_durable import DecodeError, JsonCodec


def recorded(value: object) -> bytes:
    codec = JsonCodec()
    codec.register(type(value), name="thing")
    return codec.encode(value)


def read_as(cls: type, data: bytes) -> Any:
    codec = JsonCodec()
    codec.register(cls, name="thing")
    return codec.decode(data)


@dataclasses.dataclass
class Order:
    number: int
    gone: str = "x"


def test_a_new_field_of_a_dataclass_gets_its_default_and_one_that_is_gone_is_ignored() -> None:
    @dataclasses.dataclass
    class Today:
        note: str = "none"
        number: int = 0
        tags: list[str] = dataclasses.field(default_factory=list)
        computed: int = dataclasses.field(init=False, default=3)

    data = recorded(Order(5))
    one, other = read_as(Today, data), read_as(Today, data)

    assert one == Today(number=5)
    assert vars(one) == {"note": "none", "number": 5, "tags": [], "computed": 3}
    assert one.tags is not other.tags


def test_a_frozen_dataclass_with_slots_gets_its_defaults_too() -> None:
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Today:
        tags: list[str] = dataclasses.field(default_factory=lambda: ["new"])
        number: int

    assert read_as(Today, recorded(Order(5))) == Today(number=5, tags=["new"])


def test_a_dataclass_of_pydantic_gets_its_defaults_too() -> None:
    @pydantic.dataclasses.dataclass
    class Today:
        number: int
        limit: int = PydanticField(default=7)
        tags: list[str] = PydanticField(default_factory=list)

    restored = read_as(Today, recorded(Order(5)))

    assert (restored.number, restored.limit, restored.tags) == (5, 7, [])


def test_a_new_member_of_a_named_tuple_gets_its_default() -> None:
    class Point(NamedTuple):
        x: int

    class Today(NamedTuple):
        x: int
        y: int = 7

    restored = read_as(Today, recorded(Point(1)))

    assert restored == Today(1, 7)
    assert type(restored) is Today


def test_the_members_of_a_named_tuple_are_found_by_their_names() -> None:
    class Line(NamedTuple):
        item: str
        gone: int
        price: int

    class Today(NamedTuple):
        price: int
        currency: str = "EUR"
        item: str = "none"

    assert read_as(Today, recorded(Line("book", 1, 20))) == Today(20, "EUR", "book")


class Former(BaseModel):
    number: int
    gone: int = 1
    _counter: int = PrivateAttr(default=1)
    _gone: int = PrivateAttr(default=2)


def test_a_model_gets_its_defaults_and_keeps_which_fields_were_set() -> None:
    class Today(BaseModel):
        note: str = "none"
        number: int
        tags: list[str] = Field(default_factory=list)
        double: int = Field(default_factory=lambda data: data["number"] * 2)
        _counter: int = PrivateAttr(default=5)
        _more: list[int] = PrivateAttr(default_factory=list)

    restored = read_as(Today, recorded(Former(number=3, gone=4)))

    assert restored.model_dump() == {"note": "none", "number": 3, "tags": [], "double": 6}
    assert restored.model_fields_set == {"number"}
    assert restored.__pydantic_private__ == {"_counter": 1, "_more": []}
    assert restored.__pydantic_extra__ is None


def test_a_model_that_keeps_extra_values_now_and_one_that_makes_a_field_of_one() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        number: int

    class Today(Open):
        more: str = "none"

    assert read_as(Open, recorded(Former(number=3))).model_extra == {}
    restored = read_as(Today, recorded(Open(number=1, more="kept", other=2)))
    assert restored == Today(number=1, more="kept", other=2)
    assert restored.model_fields_set == {"number", "more", "other"}


def test_a_root_model_comes_back() -> None:
    class Names(RootModel[list[str]]):
        pass

    assert read_as(Names, recorded(Names(["a"]))) == Names(["a"])


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class LessColour(enum.Enum):
    RED = "other value"


class LessRight(enum.Flag):
    READ = 1


class LessPoint(NamedTuple):
    x: int


class Point(NamedTuple):
    x: int
    y: int
    z: int


@dataclasses.dataclass
class Required:
    number: int
    needed: str


class RequiredModel(BaseModel):
    number: int
    needed: str


MISFITS: dict[str, tuple[object, type, str]] = {
    "dataclass": (Order(1), Required, "Required.*'needed'|'needed'.*Required"),
    "model": (Former(number=1), RequiredModel, "'needed'.*RequiredModel"),
    "named tuple, grown": (LessPoint(1), Point, "'y'.*Point"),
    "enum": (Colour.GREEN, LessColour, "LessColour.*'GREEN'"),
    "flag": (Right.READ | Right.WRITE, LessRight, "LessRight.*3"),
    "dataclass, a model now": (Order(1), RequiredModel, "dataclass.*RequiredModel is a pydantic"),
    "model, a dataclass now": (Former(number=1), Required, "model.*Required is a dataclass"),
    "enum, a class now": (Colour.RED, Order, "enum.*Order is a dataclass"),
}


@pytest.mark.parametrize("change", MISFITS)
def test_what_does_not_fit_todays_class_is_a_decode_error_that_names_both(change: str) -> None:
    value, cls, message = MISFITS[change]

    with pytest.raises(DecodeError, match=message):
        read_as(cls, recorded(value))


def test_an_enums_value_may_change() -> None:
    assert read_as(LessColour, recorded(Colour.RED)) is LessColour.RED


def test_a_default_that_cannot_be_made_is_a_decode_error() -> None:
    def broken() -> int:
        raise OSError("no default")

    @dataclasses.dataclass
    class Today:
        number: int
        more: int = dataclasses.field(default_factory=broken)

    with pytest.raises(DecodeError, match="no default"):
        read_as(Today, recorded(Order(1)))


# The recorded form, byte by byte.
FORMER_ROWS: dict[str, tuple[type, bytes, Callable[[], object]]] = {
    "dataclass": (
        Order,
        b'{"$":"dataclass","t":"thing","v":{"number":5,"gone":"\\u00e4"}}',
        lambda: Order(5, "ä"),
    ),
    "named tuple": (
        Point,
        b'{"$":"namedtuple","t":"thing","v":[1,2,3],"f":["x","y","z"]}',
        lambda: Point(1, 2, 3),
    ),
    "enum": (Colour, b'{"$":"enum","t":"thing","v":"RED"}', lambda: Colour.RED),
    "flag": (Right, b'{"$":"flag","t":"thing","v":3}', lambda: Right.READ | Right.WRITE),
    "model": (
        Former,
        (
            b'{"$":"model","t":"thing","v":{"__dict__":{"number":3,"gone":1},'
            b'"__pydantic_extra__":null,"__pydantic_fields_set__":{"$":"set","v":["number"]},'
            b'"__pydantic_private__":{"_counter":1,"_gone":2}}}'
        ),
        lambda: Former(number=3),
    ),
}


@pytest.mark.parametrize("kind", FORMER_ROWS)
def test_the_written_form_of_a_class_stays(kind: str) -> None:
    cls, data, value = FORMER_ROWS[kind]

    assert recorded(value()) == data
    assert read_as(cls, data) == value()


def test_a_named_tuple_without_its_names_is_read_by_places() -> None:
    data = b'{"$":"namedtuple","t":"thing","v":[1,2,3]}'

    assert read_as(Point, data) == Point(1, 2, 3)
    with pytest.raises(DecodeError, match=r"more members of .*LessPoint are recorded than its 1"):
        read_as(LessPoint, data)
