"""Warnings about annotations: once for each function, and only if the code should change."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import logging
import math
import zoneinfo
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from asgi_durable import Durable

pytestmark = pytest.mark.anyio

NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))


@dataclasses.dataclass
class Item:
    name: str
    at: datetime.datetime | None = None


@dataclasses.dataclass
class Special(Item):
    price: float = 0.0


async def warnings_of(caplog: pytest.LogCaptureFixture, hint: Any, value: Any) -> list[str]:
    """Return the warnings of a step with a hint that returns a value twice."""
    durable = Durable("sqlite://")

    async def make() -> Any:
        return value

    make.__annotations__ = {"return": hint}
    step = durable.step(make)
    for cls in (Item, Special):
        durable.register_type(cls)

    @durable.workflow
    async def work() -> None:
        for _ in range(2):
            assert repr(await step()) == repr(value)

    with caplog.at_level(logging.WARNING, logger="asgi_durable"):
        async with durable:
            await work()
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Item, Item("pen")),
        (Item | None, None),
        (datetime.datetime, NOON),
        (float, math.nan),
        (list[float], [1.0, math.inf]),
        (Sequence[int], (1, 2)),
        (Iterable[str], {"a"}),
        (complex, 1j),
        (float, 5),
        (collections.Counter[str], collections.Counter("aab")),
        (collections.deque[int], collections.deque([1, 2])),
        (dict[str, float], {"a": 5}),
        (int, True),
        (dict, collections.OrderedDict(a=1)),
        (Any, Item("pen")),
        (object, (1, 2)),
        (None, None),
        (dict[str, Any], {"a": (1,), "at": NOON}),
        (dict, {"a": {1}}),
    ],
    ids=str,
)
async def test_nothing_is_said_about_what_is_right(
    caplog: pytest.LogCaptureFixture, hint: Any, value: Any
) -> None:
    assert await warnings_of(caplog, hint, value) == []


@pytest.mark.parametrize(
    ("hint", "value", "named"),
    [
        (str, None, "is a NoneType, not a str"),
        (int, "5", "is a str, not a int"),
        (Item, Special("pen"), "would come back as a Item"),
        (Item, Item("pen", NOON), "register_type() with aliases"),
        (dict[str, Any], {"a": Item("pen")}, "['a'] is a Item"),
    ],
    ids=str,
)
async def test_once_it_is_said_what_to_correct(
    caplog: pytest.LogCaptureFixture, hint: Any, value: Any, named: str
) -> None:
    (said,) = await warnings_of(caplog, hint, value)

    assert named in said
    assert "make" in said
