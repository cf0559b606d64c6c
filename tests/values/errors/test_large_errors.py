"""Errors that do not fit into a payload are recorded without some of their content."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_durable import DurableError, EncodeError, JsonCodec, RemoteError
from asgi_durable.codec.sealing.sealer import Sealer
from asgi_durable.codec.values import Values
from asgi_durable.engine.process.recorded_errors import encode_error
from asgi_durable.payloads import Payloads


class SmallCodec(JsonCodec):
    """A codec with a size limit in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encode(self, value: object) -> bytes:
        data = super().encode(value)
        if len(data) > self.size:
            raise EncodeError(str(len(data)))
        return data


def through(size: int, error: Exception) -> Any:
    codec = SmallCodec(size)
    return codec.decode(encode_error(Values(codec, Sealer(Payloads())), error))


class ReplyError(Exception):
    def __init__(self, text: str, reply: object) -> None:
        super().__init__(text)
        self.reply = reply
        self.code = 7


class Fixed(Exception):  # noqa: N818
    def __str__(self) -> str:
        return "always the same"


def test_an_attribute_that_is_too_large_is_left_out_before_the_message() -> None:
    error = through(200_000, ReplyError("x" * 90_000, "y" * 150_000))

    assert type(error) is ReplyError
    assert (error.args, error.code) == (("x" * 90_000,), 7)
    assert not hasattr(error, "reply")
    assert error.durable_unrecorded == {"reply": "builtins.str, too large"}
    assert any("too large to be recorded whole" in note for note in error.__notes__)


def test_a_message_that_is_too_large_is_cut_and_the_class_is_kept() -> None:
    error = through(50_000, ReplyError("x" * 90_000, None))

    assert type(error) is ReplyError
    assert str(error) == f"{'x' * 10_000}… (90000 characters)"
    assert any("too large" in note for note in error.__notes__)


def test_an_argument_that_is_too_large_leaves_the_class() -> None:
    error = through(50_000, Fixed("y" * 90_000))

    assert (type(error), str(error)) == (Fixed, "always the same")


def test_an_error_of_several_arguments_that_is_too_large_keeps_its_class_and_small_attributes() -> (
    None
):
    original = ReplyError("x", None)
    original.args = ("x" * 90_000, "y" * 90_000)

    error = through(50_000, original)

    assert (type(error), error.code) == (ReplyError, 7)
    assert str(error).startswith("('xxx")


def test_an_error_that_fits_is_recorded_whole() -> None:
    error = through(50_000, ReplyError("x", "y" * 40_000))

    assert error.reply == "y" * 40_000
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize(
    "error",
    [
        ExceptionGroup("many", [ValueError("x" * 100) for _ in range(5_000)]),
        ExceptionGroup("long", [ValueError("x" * 100_000)]),
        DurableError("x" * 100_000, code="NO_MONEY", status_code=402),
        ValueError("x" * 100_000, "y" * 100_000),
        KeyError("x" * 100_000),
        UnicodeDecodeError("utf-8", b"\xff" * 100_000, 0, 1, "x"),
        ValueError("\U0001f600" * 100_000),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("size", [40_000, 2_500])
def test_an_error_of_any_kind_is_recorded_in_the_room_there_is(error: Exception, size: int) -> None:
    for note in range(100):
        error.add_note(f"{note}" * 1_000)
    error.__cause__ = ValueError("z" * 100_000)

    restored = through(size, error)

    assert isinstance(restored, (type(error), RemoteError))
    if isinstance(error, DurableError):
        assert (restored.status_code, restored.code) == (402, "NO_MONEY")


def test_a_codec_that_fails_in_its_own_way_gets_the_error_in_another_form() -> None:
    class Failing(JsonCodec):
        def encode(self, value: object) -> bytes:
            if not isinstance(value, RemoteError):
                raise TypeError
            return super().encode(value)

    codec = Failing()

    assert (
        codec.decode(encode_error(Values(codec, Sealer(Payloads())), ValueError("x"))).message
        == "x"
    )


def test_a_text_that_the_codec_refuses_is_recorded_without_the_halves_of_characters() -> None:
    class Strict(JsonCodec):
        def encode(self, value: object) -> bytes:
            data = super().encode(value)
            if b"\\ud" in data:
                raise EncodeError
            return data

    codec = Strict()
    error = DurableError("half \ud83d", code="HALF", status_code=402)

    restored = codec.decode(encode_error(Values(codec, Sealer(Payloads())), error))

    assert (restored.message, restored.code, restored.status_code) == ("half ?", "HALF", 402)
    assert restored.detail == "half ?"
