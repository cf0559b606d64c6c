"""The first version of an application's classes, and of a step."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

from pydantic import BaseModel


class Colour(enum.Enum):
    RED = "red"


class Size(NamedTuple):
    width: int
    depth: int
    height: int


@dataclasses.dataclass
class Item:
    name: str
    count: int
    size: Size
    colour: Colour
    former: str


class Parcel(BaseModel):
    weight: int
    items: list[Item]


@dataclasses.dataclass
class Label:
    text: str
    count: int = 1


@dataclasses.dataclass
class Tagged:
    number: int


class OutOfStockError(Exception):
    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"there are {left} of {item}")
        self.item = item
        self.left = left


GoneError = OutOfStockError


def item() -> Item:
    return Item("tea", 2, Size(1, 2, 3), Colour.RED, "gone")


def parcel() -> Parcel:
    return Parcel(weight=4, items=[item()])


def label() -> Label:
    return Label("fragile", 3)


async def take(given: Label) -> int:
    return given.count
