"""Values that are not compared with the decoded ones, as no other value can come back."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import pytest

from asgi_durable.codec.typed.adapters import MisfitError, adapter_for
from asgi_durable.codec.typed.certain import certainty_of
from asgi_durable.codec.typed.equality import is_same


class Name(enum.StrEnum):
    ADA = "ada"


@dataclasses.dataclass
class Item:
    name: str
    count: int | None = None
    price: float | None = None


@dataclasses.dataclass
class Shouting:
    name: str

    def __post_init__(self) -> None:
        self.name = self.name.upper()


def with_attribute(item: Item) -> Item:
    item.colour = "red"  # type: ignore[attr-defined]
    return item


def in_another_order() -> Item:
    item = Item("pen", 1)
    del item.name
    item.name = "pen"
    return item


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (dict, {"a": 1, "b": None}),
        (dict[str, Any], {"a": "x", "b": True, "c": 2**70}),
        (dict[str, int], {"a": 1}),
        (list[str], ["a", "b"]),
        (list, ["a", 1, None]),
        (list[list[int]], [[1], []]),
        (Item, Item("pen", 3)),
        (Item, Item("pen")),
        (list[Item], [Item("pen"), Item("ink", 2)]),
    ],
    ids=str,
)
def test_a_certain_value_comes_back_as_it_is(hint: Any, value: Any) -> None:
    assert certainty_of(hint)(value)
    assert is_same(adapter_for(hint).write(value)[1], value)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (dict, {1: "a"}),
        (dict, {"a": [1]}),
        (dict[str, Any], {"a": 1.5}),
        (dict[str, float], {"a": 1}),
        (dict[str, str], {"a": Name.ADA}),
        (dict[Name, str], {"ada": "x"}),
        (list[float], [1]),
        (list[int], (1,)),
        (Item, Item(Name.ADA)),
        (Item, Item("pen", price=math.nan)),
        (Item, Item("pen", price=1.5)),
        (Item, Item("pen", True)),
        (Item, with_attribute(Item("pen"))),
        (Item, in_another_order()),
        (Shouting, Shouting("pen")),
        (float, 1.5),
    ],
    ids=str,
)
def test_all_others_are_compared(hint: Any, value: Any) -> None:
    assert not certainty_of(hint)(value)


def test_a_class_that_changes_what_it_is_given_is_noticed() -> None:
    shouting = Shouting("pen")
    shouting.name = "pen"

    with pytest.raises(MisfitError):
        adapter_for(Shouting).write(shouting)  # type: ignore[union-attr]
