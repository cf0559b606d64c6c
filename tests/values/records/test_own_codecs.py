"""Codecs of an application: they write values that no annotation describes."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest

from asgi_durable import DecodeError, Durable, EncodeError, Payloads
from asgi_durable.codec.sealing.sealer import Sealer
from asgi_durable.codec.values import Values

pytestmark = pytest.mark.anyio


class OwnCodec:
    """JSON behind a prefix, which may be one of the library's own forms."""

    def __init__(self, prefix: bytes = b"t:") -> None:
        self.prefix = prefix

    def encode(self, value: object) -> bytes:
        if isinstance(value, BaseException):
            value = {"error": str(value)}
        return self.prefix + json.dumps(value).encode()

    def decode(self, data: bytes) -> Any:
        value = json.loads(data.removeprefix(self.prefix))
        is_error = isinstance(value, dict) and "error" in value
        return ValueError(value["error"]) if is_error else value

    def register(self, hint: object) -> None:
        """Do nothing: the codec needs no classes."""


@dataclasses.dataclass
class Item:
    name: str


@pytest.mark.parametrize("prefix", [b"", b"t:", b"j:", b"i:", b"o:", b"c:", b"z:", b"e:", b"\x80"])
@pytest.mark.parametrize(
    "payloads", [Payloads(), Payloads(compress_from=10, encryption_keys=[os.urandom(32)])], ids=str
)
async def test_what_it_writes_is_read_beside_what_annotations_describe(
    url: str, prefix: bytes, payloads: Payloads
) -> None:
    calls: list[str] = []

    def define() -> tuple[Durable, Any]:
        durable = Durable(url, codec=OwnCodec(prefix), payloads=payloads)

        @durable.step(name="plain")
        async def plain(value: Any):
            calls.append("plain")
            return [value, None]

        @durable.step(name="typed")
        async def typed(item: Item) -> Item:
            calls.append("typed")
            return item

        @durable.step(name="failing", retry=None)
        async def failing() -> int:
            calls.append("failing")
            raise ValueError("no")

        @durable.workflow(name="work")
        async def work(value, item: Item, *more: Item, **others) -> list[Any]:
            seen = [await plain(value), await typed(item), more, others]
            with pytest.raises(ValueError, match="no"):
                await failing()
            return [repr(each) for each in seen]

        return durable, work

    durable, work = define()
    async with durable:
        result = await durable.options(workflow_id="w").run_workflow(
            work, {"a": 1}, Item("pen"), Item("ink"), z=5
        )
    durable, _ = define()
    async with durable:
        again = await (await durable.retrieve_workflow("w")).get_result()
        status = await (await durable.retrieve_workflow("w")).get_status()

    assert (
        result == again == ["[{'a': 1}, None]", repr(Item("pen")), repr((Item("ink"),)), "{'z': 5}"]
    )
    assert status.input == {
        "value": {"a": 1},
        "item": Item("pen"),
        "more": (Item("ink"),),
        "others": {"z": 5},
    }
    assert calls == ["plain", "typed", "failing"]


def test_whatever_it_raises_is_told_as_what_it_means() -> None:
    values = Values(OwnCodec(), Sealer(Payloads()))

    with pytest.raises(EncodeError, match="TypeError"):
        values.write(object())
    with pytest.raises(DecodeError, match="JSONDecodeError"):
        values.read(b"c:t:{")


@pytest.mark.parametrize("data", [b'i:{"c":"%%%"}', b'i:{"c":"eA"}', b"i:{", b'i:{"v":[1]}'])
def test_damaged_arguments_are_a_decode_error(data: bytes) -> None:
    values = Values(OwnCodec(), Sealer(Payloads()))

    with pytest.raises(DecodeError):
        values.read_arguments(data, {})


def test_a_record_that_is_compressed_again_and_again_is_refused() -> None:
    sealer = Sealer(Payloads(compress_from=10))
    data = b'"' + b"x" * 1_000_000 + b'"'
    for _ in range(2):
        data = sealer.seal(data)

    with pytest.raises(DecodeError, match="twice"):
        Values(OwnCodec(b""), sealer).read(data)


def test_a_result_of_the_largest_size_can_be_asked_for() -> None:
    values = Values(OwnCodec(b""), Sealer(Payloads(max_size=100)))
    output, *_ = values.write("x" * 98)

    assert values.read_outcome(values.write_outcome("work", output)) == ("work", output)
