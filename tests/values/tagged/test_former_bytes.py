"""Bytes of the first version: the digests of arguments in its logs are made of them."""

from __future__ import annotations

import dataclasses
import datetime
import fractions
import hashlib
import zoneinfo
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import orm

from asgi_durable import Durable, EncodeError, JsonCodec
from asgi_durable.engine.process.definitions import StepDefinition
from asgi_durable.engine.process.step_options import StepOptions

HERE = __name__


@dataclasses.dataclass
class Computed:
    number: int

    def __post_init__(self) -> None:
        self.double = self.number * 2


class Model(BaseModel):
    number: int


class Mapped(orm.MappedAsDataclass, orm.DeclarativeBase):
    pass


class Row(Mapped):
    __tablename__ = "rows"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class Zone(zoneinfo.ZoneInfo):
    pass


def at(zone: Any) -> datetime.datetime:
    return datetime.datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=1)


FORMER: dict[str, tuple[Callable[[], Any], str]] = {
    "plain": (lambda: {"a": [1, "ä", 1e300]}, '{"a":[1,"\\u00e4",1e+300]}'),
    "attribute that is no field": (
        lambda: Computed(1),
        f'{{"$":"dataclass","t":"{HERE}:Computed","v":{{"number":1}}}}',
    ),
    "model without a field": (
        Model.model_construct,
        (
            f'{{"$":"model","t":"{HERE}:Model","v":{{"__dict__":{{}},"__pydantic_extra__":null,'
            '"__pydantic_fields_set__":{"$":"set","v":[]},"__pydantic_private__":null}}'
        ),
    ),
    "mapped dataclass": (
        lambda: Row(id=1),
        f'{{"$":"dataclass","t":"{HERE}:Row","v":{{"id":1}}}}',
    ),
    "offset with a name": (
        lambda: at(datetime.timezone(datetime.timedelta(hours=1), "CET")),
        '{"$":"datetime","v":"2026-10-25T02:30:00+01:00","fold":1}',
    ),
    "zone of a library": (
        lambda: at(Zone("Europe/Berlin")),
        '{"$":"datetime","v":"2026-10-25T02:30:00+01:00","fold":1,"zone":"Europe/Berlin"}',
    ),
    "halves of a character": (lambda: "\ud83d\ude00", '"\\ud83d\\ude00"'),
}


@pytest.mark.parametrize("kind", FORMER)
def test_what_is_refused_now_has_the_bytes_that_it_had(kind: str) -> None:
    make, text = FORMER[kind]
    codec = JsonCodec()
    for cls in (Computed, Model, Row):
        codec.register(cls)

    assert codec.former_bytes(make()) == text.encode()


def test_a_name_that_was_given_later_is_none_of_then() -> None:
    codec = JsonCodec()
    codec.register(Model, name="model")

    assert f'"t":"{HERE}:Model"'.encode() in codec.former_bytes(Model(number=1))


@pytest.mark.parametrize("value", [OrderedDict(a=1), fractions.Fraction(1, 2), range(3), object()])
def test_what_is_recorded_only_now_had_no_bytes(value: object) -> None:
    with pytest.raises(EncodeError):
        JsonCodec().former_bytes([value])


def test_a_step_that_the_first_version_has_recorded_is_the_same_call() -> None:
    registry = Durable("sqlite://").engine.registry

    async def charge(order: Computed, more: Any) -> None:
        pass

    step = StepDefinition(charge, name="charge", registry=registry, options=StepOptions())
    step.prepare()
    former = (
        f'[{{"$":"dataclass","t":"{HERE}:Computed","v":{{"number":1}}}},"x"]',
        (
            '{"$":"tuple","v":[{"$":"tuple","v":['
            f'{{"$":"dataclass","t":"{HERE}:Computed","v":{{"number":1}}}},'
            '"collections:OrderedDict"]},{}]}'
        ),
    )

    for text, more in zip(former, ("x", OrderedDict(a=1)), strict=True):
        recorded = hashlib.blake2b(text.encode(), digest_size=16).digest()
        assert registry.digest(step, (Computed(1), more), {}).fits(recorded)
        assert not registry.digest(step, (Computed(2), more), {}).fits(recorded)
