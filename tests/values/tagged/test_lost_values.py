"""Values that would come back as other values: they are refused when they are recorded."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pytest
import sqlalchemy
from pydantic import BaseModel, ConfigDict, FileUrl, HttpUrl, PrivateAttr
from sqlalchemy import orm

from asgi_durable import EncodeError, JsonCodec
from asgi_durable.codec.typed.adapters import adapter_for

T = TypeVar("T")


@dataclasses.dataclass
class Computed:
    number: int
    total: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.double = self.number * 2


@dataclasses.dataclass
class Counted:
    number: int
    limit: ClassVar[int] = 5


@dataclasses.dataclass
class Unset:
    number: int
    later: int = dataclasses.field(init=False)


class SlotBase:
    __slots__ = ("hidden",)


@dataclasses.dataclass
class Slotted(SlotBase):
    __slots__ = ("number",)
    number: int


@dataclasses.dataclass
class Text(list[int]):
    number: int = 0


class Doubling:
    def __get__(self, owner: Any, cls: Any = None) -> int:
        return 5 if owner is None else int(owner.__dict__["number"])

    def __set__(self, owner: Any, value: int) -> None:
        owner.__dict__["number"] = value * 2


@dataclasses.dataclass
class Described:
    number: int = Doubling()  # type: ignore[assignment]


class Pair(NamedTuple):
    left: int


class OpenPair(Pair):
    pass


class Colour(enum.Enum):
    RED = "red"

    @classmethod
    def _missing_(cls, value: object) -> Any:
        member = object.__new__(cls)
        member._name_, member._value_ = "ANY", value
        return member


class Right(enum.Flag):
    READ = 1


def forged_right() -> Right:
    member = object.__new__(Right)
    member._name_, member._value_ = "READ", 1
    return member


def forged_url() -> HttpUrl:
    url = HttpUrl("http://example.org")
    url._url = FileUrl("file:///etc/passwd")._url
    return url


class Model(BaseModel):
    number: int
    more: int = 1


class Mapped(orm.MappedAsDataclass, orm.DeclarativeBase):
    pass


class MappedOrder(Mapped):
    __tablename__ = "orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class Undeclared(orm.DeclarativeBase):
    pass


class UndeclaredOrder(Undeclared):
    __tablename__ = "orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


@dataclasses.dataclass
class MappedLater:
    id: int


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@dataclasses.dataclass
class Holder:
    content: Any


def changed(value: Any, **attributes: Any) -> Any:
    for name, attribute in attributes.items():
        object.__setattr__(value, name, attribute)
    return value


def updated(model: Any, **attributes: Any) -> Any:
    model.__dict__.update(attributes)
    return model


class OddZone(datetime.tzinfo):
    def utcoffset(self, _: Any) -> datetime.timedelta:
        return datetime.timedelta(hours=1)

    def dst(self, _: Any) -> None:
        return None

    def tzname(self, _: Any) -> str:
        return "odd"


NO_FIELD = "is no field and would be lost; declare it as a field"
LOST: dict[str, tuple[Callable[[], Any], str]] = {
    "set in __post_init__": (lambda: Computed(1), f"Computed .*'double' {NO_FIELD}"),
    "set later": (lambda: changed(Counted(1), note="x"), f"'note' {NO_FIELD}"),
    "class variable": (lambda: changed(Counted(1), limit=7), f"'limit' {NO_FIELD}"),
    "in the place of a method": (lambda: changed(Counted(1), __eq__=7), f"'__eq__' {NO_FIELD}"),
    "never set": (lambda: Unset(1), "Unset .*its field 'later' is not set"),
    "in a slot": (lambda: changed(Slotted(1), hidden=5), f"'hidden' {NO_FIELD}"),
    "content of a base": (Text, "derives from a built-in class"),
    "behind a descriptor": (lambda: Described(2), "'number' is a Doubling, whose code would run"),
    "on a named tuple": (lambda: changed(OpenPair(1), note=1), f"'note' {NO_FIELD}"),
    "short named tuple": (lambda: tuple.__new__(Pair, ()), "Pair .* has 0 members, not 1"),
    "enum member made later": (lambda: Colour("blue"), "'ANY' is no member"),
    "flag made later": (forged_right, "its value 1 leads to another member"),
    "URL of another kind": (forged_url, "leads to no such URL; return a str"),
    "model, unset": (lambda: Model.model_construct(more=1), "Model .*its field 'number' is not"),
    "model, updated": (lambda: updated(Model(number=1), x=1), f"'x' {NO_FIELD}"),
    "mapped dataclass": (lambda: MappedOrder(id=1), "MappedOrder .*: an ORM row; return its data"),
    "ORM row": (lambda: UndeclaredOrder(id=1), "an ORM row; return its data"),
    "mapped later": (lambda: changed(MappedLater(1), _sa_instance_state=1), "an ORM row"),
    "zone of one's own": (
        lambda: datetime.datetime(2026, 1, 1, tzinfo=OddZone()),
        r"OddZone .*use zoneinfo\.ZoneInfo",
    ),
    "factory": (lambda: collections.defaultdict(lambda: 1), "factory is no built-in class"),
    "attribute of an OrderedDict": (
        lambda: changed(collections.OrderedDict(), note=1),
        "its attributes would be lost",
    ),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_would_be_lost_is_refused_with_its_place(kind: str) -> None:
    make, message = LOST[kind]
    codec = JsonCodec()
    for cls in (Computed, Counted, Unset, Slotted, Text, Described, OpenPair, Pair, Colour):
        codec.register(cls)
    for cls in (Right, HttpUrl, Model, MappedOrder, UndeclaredOrder, MappedLater, Holder):
        codec.register(cls)

    with pytest.raises(EncodeError, match=message):
        codec.encode(make())
    with pytest.raises(EncodeError, match=rf"at \['a'\]\['content'\]\[0\] .*{message[-8:]}"):
        codec.encode({"a": Holder([make()])})


def test_the_place_is_that_of_what_is_told() -> None:
    codec = JsonCodec()
    codec.register(Holder)

    with pytest.raises(EncodeError, match=r"Holder at \['a'\] .*'note' is no field"):
        codec.encode({"a": changed(Holder(object()), note=1), "b": object()})


def test_what_is_computed_again_is_not_lost() -> None:
    @dataclasses.dataclass
    class Order:
        number: int

        @functools.cached_property
        def double(self) -> int:
            return self.number * 2

    class Purchase(BaseModel):
        number: int

        @functools.cached_property
        def double(self) -> int:
            return self.number * 2

    codec = JsonCodec()
    for cls in (Order, Purchase):
        codec.register(cls)
        value = cls(number=2)
        assert value.double == 4

        restored = codec.decode(codec.encode(value))

        assert restored == value
        assert "double" not in vars(restored)
        assert restored.double == 4


def test_a_row_of_a_query_is_named_as_one() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection:
        row = connection.execute(sqlalchemy.text("SELECT 1")).one()
    engine.dispose()

    with pytest.raises(EncodeError, match=r"Row .*return a tuple\(…\)"):
        JsonCodec().encode(row)


def test_what_typing_notes_on_an_object_is_not_lost() -> None:
    codec = JsonCodec()
    codec.register(Box)
    value = Box[int](1)
    assert "__orig_class__" in vars(value)

    assert codec.decode(codec.encode(value)) == value
    adapter = adapter_for(Box[int])
    assert adapter is not None
    assert adapter.write(value) == (b'{"content":1}', value)


def test_what_a_model_has_beside_its_fields_is_kept() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        number: int = 1
        _note: str = PrivateAttr(default="none")

    codec = JsonCodec()
    codec.register(Open)
    value = Open.model_validate({"more": [1, (2,)]})
    value._note = "set"

    restored = codec.decode(codec.encode(value))

    assert restored == value
    assert restored.__getstate__() == value.__getstate__()


def test_halves_of_a_character_beside_each_other_are_refused() -> None:
    codec = JsonCodec()
    for value in ("\ud83d\ude00", {"\ud83d\ude00": 1}, [{"a": ("\ud83d\ude00",)}]):
        with pytest.raises(EncodeError, match="halves of a surrogate pair"):
            codec.encode(value)
    # The character itself, its halves alone, and the halves in the other order.
    for value in ("\U0001f600", "\ud83d", "\ude00\ud83d", ["\ud83d", "\ude00"]):
        assert codec.decode(codec.encode(value)) == value


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


def deep(levels: int, function: Callable[[], Any]) -> Any:
    return function() if levels == 0 else deep(levels - 1, function)


@pytest.mark.parametrize(
    "wrap",
    [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: {1: v}, Holder],
    ids=["list", "dict", "tuple", "pairs", "dataclass"],
)
def test_what_is_accepted_is_read_much_deeper_in_the_stack(wrap: Callable[[Any], Any]) -> None:
    codec = JsonCodec()
    codec.register(Holder)
    data = codec.encode(nested(120, wrap))

    # Comparing it would take another frame for each level.
    assert codec.encode(deep(250, lambda: codec.decode(data))) == data
    with pytest.raises(EncodeError, match="nested too deeply"):
        codec.encode(nested(202, wrap))
