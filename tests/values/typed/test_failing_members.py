"""Values whose own code fails, and endless values, under an annotation."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from asgi_durable import DecodeError, EncodeError
from asgi_durable.codec.json_codec import JsonCodec
from asgi_durable.codec.sealing.sealer import Sealer
from asgi_durable.codec.typed.adapters import adapter_for
from asgi_durable.codec.values import Values
from asgi_durable.engine.process import definitions
from asgi_durable.engine.process.definitions import WorkflowDefinition
from asgi_durable.engine.process.registry import Registry
from asgi_durable.payloads import Payloads


class UnreadableError(Exception):
    def __str__(self) -> str:
        msg = "no text"
        raise RuntimeError(msg)


class ValidationError(Exception):
    def errors(self) -> list[str]:
        return []


@dataclasses.dataclass
class Refusing:
    number: int

    def __post_init__(self) -> None:
        raise UnreadableError if self.number == 1 else ValidationError


@dataclasses.dataclass
class Order:
    number: int


class Holder(BaseModel):
    held: Any = None


async def handle(order: Order) -> Order:
    return order


def without_end() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("make", [without_end, lambda: nested(5000)])
def test_a_value_that_is_nested_too_deeply_is_an_encode_error_under_an_annotation(
    make: Callable[[], object],
) -> None:
    with pytest.raises(EncodeError, match="nested too deeply"):
        Values(JsonCodec(), Sealer(Payloads())).write(make(), adapter_for(list))


def test_a_model_that_contains_itself_is_an_encode_error() -> None:
    with pytest.raises(EncodeError):
        Values(JsonCodec(), Sealer(Payloads())).write(
            Holder(held=without_end()), adapter_for(Holder)
        )


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_that_cannot_be_shown_is_a_decode_error(number: int) -> None:
    adapter = adapter_for(Refusing)
    assert adapter is not None
    with pytest.raises(DecodeError):
        adapter.read(b'{"number":%d}' % number)


def test_a_thread_waits_for_the_one_that_resolves_the_annotations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go_on = threading.Event(), threading.Event()
    resolve = definitions.function_hints

    def resolve_slowly(function: Any) -> dict[str, object]:
        began.set()
        assert go_on.wait(60)
        return resolve(function)

    monkeypatch.setattr(definitions, "function_hints", resolve_slowly)
    registry = Registry(JsonCodec(), Payloads())
    definition = WorkflowDefinition(
        handle, name="handle", registry=registry, max_recovery_attempts=None
    )
    written: list[bytes] = []
    first = threading.Thread(target=registry.prepare)
    second = threading.Thread(
        target=lambda: written.append(definition.encode_input((Order(1),), {}))
    )
    first.start()
    assert began.wait(60)
    # It may run before or after the first has ended; both orders must work.
    second.start()
    second.join(0.05)
    go_on.set()
    first.join(60)
    second.join(60)
    assert written == [b'i:{"t":{"order":{"number":1}}}']
