"""The names that classes are recorded under: each leads to one class, or is refused."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, NewType, TypedDict, TypeVar

import pytest
from pydantic import BaseModel
from sqlalchemy import orm

from asgi_durable import DecodeError, Durable, DurableUsageError, EncodeError, JsonCodec

REMEDY = r"durable\.register_type\(…, name=…\)"


@dataclasses.dataclass
class Order:
    number: int


@dataclasses.dataclass
class Purchase:
    number: int


class Colour(enum.Enum):
    RED = "red"


def local_item() -> Any:
    @dataclasses.dataclass
    class Item:
        name: str

    return Item


def dataclass_named(name: str, field: str) -> Any:
    namespace = {"__qualname__": name, "__module__": __name__}
    return dataclasses.make_dataclass(name, [(field, int)], namespace=namespace)


def codec_of(*hints: object) -> JsonCodec:
    codec = JsonCodec()
    for hint in hints:
        codec.register(hint)
    return codec


def test_a_class_is_recorded_under_its_name_and_read_under_its_aliases() -> None:
    codec = JsonCodec()
    codec.register(Order, name="order", aliases=["old.module:Bestellung"])

    assert codec.encode(Order(1)) == b'{"$":"dataclass","t":"order","v":{"number":1}}'
    for name in ("order", "old.module:Bestellung", f"{__name__}:Order"):
        data = f'{{"$":"dataclass","t":"{name}","v":{{"number":1}}}}'.encode()
        assert codec.decode(data) == Order(1)


def test_aliases_alone_leave_the_name_as_it_is() -> None:
    codec = JsonCodec()
    codec.register(Order, aliases=["old"])

    assert f'"t":"{__name__}:Order"'.encode() in codec.encode(Order(1))
    assert codec.decode(b'{"$":"dataclass","t":"old","v":{"number":1}}') == Order(1)


def test_a_name_may_be_given_to_a_class_that_an_annotation_has_named_already() -> None:
    codec = codec_of(Order)
    former = codec.encode(Order(1))
    codec.register(Order, name="order")
    codec.register(Order, name="order")

    assert b'"t":"order"' in codec.encode(Order(1))
    assert codec.decode(former) == Order(1)


@pytest.mark.parametrize(
    ("name", "aliases"), [("order", ()), ("other", ["order"]), (None, [f"{__name__}:Order"])]
)
def test_a_name_of_another_class_is_refused(name: str | None, aliases: list[str]) -> None:
    codec = JsonCodec()
    codec.register(Order, name="order")

    with pytest.raises(DurableUsageError, match=r"\.Order and .*\.Purchase"):
        codec.register(Purchase, name=name, aliases=aliases)

    # No part of it was registered.
    assert codec.types.name_of(Purchase) is None


def test_a_class_has_one_name() -> None:
    codec = JsonCodec()
    codec.register(Order, name="order")

    with pytest.raises(DurableUsageError, match="'order' already, not as 'purchase'"):
        codec.register(Order, name="purchase")


class Base(orm.DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class Plain:
    pass


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Plain, r"test_class_names\.Plain.*dataclasses, enums"),
        (Row, "an ORM row"),
        (list[Order], "one class can be given a name"),
        (ValueError, "register_exception"),
        (str, "builtins.str"),
    ],
)
def test_what_is_no_recordable_class_gets_no_name(cls: Any, message: str) -> None:
    with pytest.raises(DurableUsageError, match=message):
        JsonCodec().register(cls, name="thing")


@pytest.mark.parametrize("names", [{"name": ""}, {"aliases": [""]}, {"aliases": [5]}])
def test_a_name_that_is_none_is_refused(names: dict[str, Any]) -> None:
    with pytest.raises(DurableUsageError, match="under text such as 'order'"):
        JsonCodec().register(Order, **names)


def test_one_alias_may_be_given_as_it_is() -> None:
    codec = JsonCodec()
    codec.register(Order, aliases="old")

    assert codec.types.find("old") is Order


def test_register_type_takes_names_and_refuses_what_it_cannot_record() -> None:
    durable = Durable("sqlite://")
    durable.register_type(Order, name="order", aliases=["old"])
    durable.register_type(list[Purchase] | dict[str, Colour])
    for hint in (int, ValueError, object, enum.Enum, Any):
        durable.register_type(hint)

    codec = durable.engine.registry.codec
    assert codec.decode(codec.encode([Order(1), Purchase(2), Colour.RED])) == [
        Order(1),
        Purchase(2),
        Colour.RED,
    ]
    with pytest.raises(DurableUsageError, match="Plain cannot be registered"):
        durable.register_type(Plain)


class OwnCodec:
    def encode(self, value: object) -> bytes:
        return b""

    def decode(self, data: bytes) -> Any:
        return None

    def register(self, hint: object) -> None:
        pass


def test_a_codec_without_names_says_so() -> None:
    durable = Durable("sqlite://", codec=OwnCodec())
    durable.register_type(Plain)

    with pytest.raises(DurableUsageError, match="OwnCodec takes no names"):
        durable.register_type(Order, name="order")


def test_a_single_local_class_comes_back() -> None:
    cls = local_item()
    codec = codec_of(cls)

    assert codec.decode(codec.encode(cls("a"))) == cls("a")


def test_two_local_classes_of_one_name_are_refused_and_not_swapped() -> None:
    one = local_item()
    other = dataclass_named(one.__qualname__, "price")
    codec = codec_of(one)
    data = codec.encode(one("a"))
    codec.register(other)

    for value in (one("a"), other("b")):
        with pytest.raises(EncodeError) as caught:
            codec.encode({"item": value})
        assert "at ['item'] cannot be recorded: several classes have this name" in str(caught.value)
        assert "Item(name) and " in str(caught.value)
        assert "Item(price); give each a name" in str(caught.value)
    with pytest.raises(DecodeError, match="one of several"):
        codec.decode(data)


def test_a_name_tells_two_local_classes_apart() -> None:
    one, other = local_item(), local_item()
    codec = codec_of(one)
    former = codec.encode(one("a"))
    codec.register(other, name="other")

    assert type(codec.decode(codec.encode(other("a")))) is other
    assert type(codec.decode(codec.encode(one("a")))) is one
    assert type(codec.decode(former)) is one


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]


# pydantic puts the first of them into the module, under the name that both have.
ONE_PAGE, OTHER_PAGE = Page[Order], Page[dataclass_named("Order", "price")]


def test_two_generic_models_of_one_name_are_refused() -> None:
    codec = codec_of(ONE_PAGE)
    data = codec.encode(ONE_PAGE(items=[]))
    codec.register(OTHER_PAGE)

    for page in (ONE_PAGE, OTHER_PAGE):
        with pytest.raises(EncodeError, match=f"several classes have this name.*{REMEDY}"):
            codec.encode(page(items=[]))
    with pytest.raises(DecodeError, match="one of several"):
        codec.decode(data)


MODULE = """
import dataclasses
@dataclasses.dataclass
class Order:
    number: int
    {more}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "orders_of_a_test.py").write_text(MODULE.format(more=""))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "orders_of_a_test", raising=False)
    module = importlib.import_module("orders_of_a_test")
    # Modules that the test loads are removed again.
    monkeypatch.setitem(sys.modules, "orders_of_a_test", module)
    return module


def reload(module: ModuleType) -> None:
    Path(str(module.__file__)).write_text(MODULE.format(more="more: int = 0"))
    importlib.reload(module)


def test_the_newest_class_of_a_reloaded_module_stands(module: ModuleType) -> None:
    former = module.Order
    codec = codec_of(former)
    data = codec.encode(former(1))
    reload(module)
    codec.register(module.Order)

    assert codec.decode(codec.encode(module.Order(1, 2))) == module.Order(1, 2)
    assert codec.decode(data) == module.Order(1, 0)
    with pytest.raises(EncodeError, match=r"leads to another class now, .*Order\(number, more\)"):
        codec.encode(former(1))


def test_a_reloaded_module_registers_its_names_again(module: ModuleType) -> None:
    codec = JsonCodec()
    codec.register(module.Order, name="order", aliases=["old"])
    data = codec.encode(module.Order(1))
    reload(module)
    codec.register(module.Order, name="order", aliases=["old"])

    assert codec.decode(data) == module.Order(1)


def test_a_class_whose_name_leads_to_another_one_is_refused() -> None:
    hidden = dataclass_named("Order", "price")
    codec = codec_of(hidden)

    with pytest.raises(EncodeError, match=rf"at \[0\].*Order\(number\).*{REMEDY}"):
        codec.encode([hidden(1)])


def test_a_class_whose_name_is_anothers_alias_is_refused() -> None:
    codec = JsonCodec()
    codec.register(Purchase, aliases=[f"{__name__}:Order"])
    codec.register(Order)

    with pytest.raises(EncodeError, match=r"leads to another class now, .*Purchase"):
        codec.encode(Order(1))
    assert type(codec.decode(codec.encode(Purchase(1)))) is Purchase


class Details(TypedDict):
    order: Order


OrderId = NewType("OrderId", Order)


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Details, {"order": Order(1)}),
        (OrderId, Order(1)),
        (Literal[Colour.RED], Colour.RED),
        (Box[Order], Box(Order(1))),
        (dict[str, tuple[Order | None, ...]], [Order(1)]),
    ],
    ids=str,
)
def test_classes_are_found_in_every_kind_of_hint(hint: object, value: object) -> None:
    codec = codec_of(hint)

    assert codec.decode(codec.encode(value)) == value


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the `type` statement is newer")
def test_classes_are_found_behind_a_name_for_a_type_that_names_itself() -> None:
    names: dict[str, Any] = {"Order": Order}
    exec("type Tree = Order | list[Tree]", names)
    codec = codec_of(names["Tree"])

    assert codec.decode(codec.encode([Order(1)])) == [Order(1)]
