"""Exception classes for which an application has registered functions to record them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_durable import DecodeError, Durable, DurableUsageError, JsonCodec, RemoteError


class CardError(Exception):
    """An error with a value that cannot be recorded."""

    def __init__(self, text: str, reply: memoryview) -> None:
        super().__init__(text)
        self.reply = reply

    def __str__(self) -> str:
        return f"{self.args[0]} ({bytes(self.reply).decode()})"


class LostCardError(CardError):
    def __init__(self) -> None:
        super().__init__("lost", memoryview(b"L1"))
        self.since = 7


class RenamedError(Exception):
    pass


def data_of(error: CardError) -> dict[str, Any]:
    return {"text": error.args[0], "reply": bytes(error.reply)}


def error_of(data: dict[str, Any]) -> CardError:
    return CardError(data["text"], memoryview(data["reply"]))


def registered() -> JsonCodec:
    codec = JsonCodec()
    codec.register_exception(CardError, to_data=data_of, from_data=error_of)
    return codec


def raised(error: Exception) -> Exception:
    try:
        raise error from KeyError("cause")
    except Exception as caught:
        caught.add_note("note")
        return caught


def test_a_registered_class_is_recorded_as_its_functions_say() -> None:
    codec = registered()
    error = raised(CardError("declined", memoryview(b"D7")))

    once = codec.decode(codec.encode(error))
    twice = codec.decode(codec.encode(once))

    for restored in (once, twice):
        assert type(restored) is CardError
        assert (str(restored), bytes(restored.reply)) == ("declined (D7)", b"D7")
        assert repr(restored.__cause__) == "KeyError('cause')"
        assert restored.__notes__[0] == "note"
        assert "in raised" in restored.durable_traceback
        assert len(restored.__notes__) == 2


def test_a_subclass_of_a_registered_class_is_recorded_like_it() -> None:
    codec = registered()
    error = LostCardError()
    error.place = memoryview(b"x")  # type: ignore[attr-defined]

    restored = codec.decode(codec.encode(error))

    assert type(restored) is LostCardError
    assert (str(restored), bytes(restored.reply), restored.since) == ("lost (L1)", b"L1", 7)
    assert restored.durable_unrecorded == {"place": "builtins.memoryview"}


def test_a_class_that_is_not_registered_is_a_remote_error() -> None:
    data = JsonCodec().encode(CardError("declined", memoryview(b"D7")))

    assert type(registered().decode(data)) is RemoteError


def fails(_: object) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("to_data", "from_data", "reason"),
    [
        (fails, error_of, "ZeroDivisionError"),
        (data_of, fails, "ZeroDivisionError"),
        (lambda error: error.reply, error_of, "memoryview"),
        (data_of, lambda _: "no error", "no exception"),
        (data_of, lambda _: CardError("other", memoryview(b"")), "another message"),
    ],
    ids=["to_data fails", "from_data fails", "not recordable", "no exception", "another message"],
)
def test_functions_that_do_not_lead_back_record_no_class_and_say_why(
    to_data: Any, from_data: Any, reason: str
) -> None:
    codec = JsonCodec()
    codec.register_exception(CardError, to_data=to_data, from_data=from_data)

    restored = codec.decode(codec.encode(CardError("declined", memoryview(b"D7"))))

    assert type(restored) is RemoteError
    assert restored.message == "declined (D7)"
    assert reason in restored.__notes__[0]


def test_what_a_function_that_is_gone_has_recorded_is_a_decode_error() -> None:
    data = registered().encode(CardError("declined", memoryview(b"D7")))
    other = JsonCodec()
    other.register_exception(CardError, to_data=data_of, from_data=fails)

    with pytest.raises(DecodeError, match=r"register_exception.*CardError"):
        JsonCodec().decode(data)
    with pytest.raises(DecodeError, match=r"CardError.*ZeroDivisionError"):
        other.decode(data)


def test_a_local_class_that_is_registered_comes_back() -> None:
    class LocalError(Exception):
        pass

    codec = JsonCodec()
    codec.register_exception(LocalError)

    assert type(codec.decode(codec.encode(LocalError("x")))) is LocalError
    assert type(JsonCodec().decode(codec.encode(LocalError("x")))) is RemoteError


def test_of_two_local_classes_of_one_name_the_one_that_is_registered_comes_back() -> None:
    def made() -> type[Exception]:
        class LocalError(Exception):
            pass

        return LocalError

    elder, younger, codec = made(), made(), JsonCodec()
    codec.register_exception(elder)
    codec.register_exception(younger)

    assert type(codec.decode(codec.encode(younger("x")))) is younger
    assert type(codec.decode(codec.encode(elder("x")))) is RemoteError


def test_functions_for_a_class_of_pythons_own_are_for_what_derives_from_it() -> None:
    codec = JsonCodec()
    codec.register_exception(
        ArithmeticError, to_data=lambda error: error.args[0], from_data=ArithmeticError
    )

    data = codec.encode(OverflowError("much", 7))

    assert b"another message" in data
    assert type(codec.decode(codec.encode(OverflowError("much")))) is OverflowError


def renamed(name: str) -> bytes:
    packed = {"$": "error", "t": name, "m": "x", "a": ["x"], "s": {"code": 1}, "tb": "", "r": True}
    return json.dumps(packed).encode()


def test_a_class_that_was_renamed_is_found_by_its_alias() -> None:
    codec = JsonCodec()
    codec.register_exception(RenamedError, aliases=["shop.old:OldError", "shop:OlderError"])

    for name in ("shop.old:OldError", "shop:OlderError"):
        error = codec.decode(renamed(name))

        assert (type(error), str(error), error.code) == (RenamedError, "x", 1)
    unknown = JsonCodec().decode(renamed("shop.old:OldError"))
    assert type(unknown) is RemoteError
    assert "aliases" in unknown.__notes__[0]


def test_an_alias_does_not_hide_the_class_that_has_the_name() -> None:
    codec = JsonCodec()
    codec.register_exception(RenamedError, aliases="builtins:ValueError")

    assert type(codec.decode(codec.encode(ValueError("x")))) is ValueError


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (int, {}, "derives from Exception"),
        (KeyboardInterrupt, {}, "derives from Exception"),
        (CardError("x", memoryview(b"")), {}, "derives from Exception"),
        (CardError, {"to_data": data_of}, "both to_data= and from_data="),
        (CardError, {"from_data": error_of}, "both to_data= and from_data="),
        (CardError, {"aliases": ["OldError"]}, '"module:QualName"'),
        (CardError, {"aliases": ["shop:"]}, '"module:QualName"'),
    ],
)
def test_a_registration_that_makes_no_sense_is_refused(
    cls: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DurableUsageError, match=message):
        Durable("sqlite://").register_exception(cls, **options)


def test_a_codec_without_that_method_is_named() -> None:
    class OwnCodec:
        def encode(self, value: object) -> bytes:
            raise NotImplementedError

        decode = encode

        def register(self, hint: object) -> None: ...

    with pytest.raises(DurableUsageError, match="OwnCodec"):
        Durable("sqlite://", codec=OwnCodec()).register_exception(CardError)
