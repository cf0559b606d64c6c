"""The second version: classes renamed and changed, and a step with one more parameter."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

from pydantic import BaseModel, Field


class Paint(enum.Enum):
    CRIMSON = "red"
    BLUE = "blue"


class Extent(NamedTuple):
    height: int
    width: int
    unit: str = "m"


@dataclasses.dataclass(frozen=True)
class Goods:
    name: str
    colour: Paint
    size: Extent
    count: int | None
    tags: list[str] = dataclasses.field(default_factory=list)


class Crate(BaseModel):
    items: list[Goods]
    weight: float
    notes: list[str] = Field(default_factory=list)


@dataclasses.dataclass
class Sticker:
    text: str
    count: int | None = 1
    size: int = 10


@dataclasses.dataclass
class Marked:
    number: int
    mark: str = "new"


class SoldOutError(Exception):
    def __init__(self, *, stock: object) -> None:
        raise AssertionError(stock)


Item, Parcel, Tagged, GoneError = Goods, Crate, Marked, SoldOutError


def item() -> Goods:
    return Goods("tea", Paint.CRIMSON, Extent(3, 1), 2)


def parcel() -> Crate:
    return Crate(weight=4.0, items=[item()])


def label() -> Sticker:
    return Sticker("fragile", 3)


Label = Sticker


async def take(given: Sticker, *, times: int = 1) -> int:
    raise AssertionError((given, times))
