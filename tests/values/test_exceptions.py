"""Exceptions through the step log."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import pytest
from fastapi import HTTPException
from pydantic import BaseModel, ValidationError

from asgi_durable import (
    DurableError,
    EncodeError,
    FinalError,
    JsonCodec,
    RemoteError,
    StorageError,
    StorageUnavailableError,
)
from asgi_durable.codec.recorded_answers import is_kind_of, stand_in
from asgi_durable.codec.sealing import Sealer
from asgi_durable.codec.values import Values
from asgi_durable.engine.values import encode_error
from asgi_durable.middleware.problem_details import problem_response


class TwoArguments(Exception):  # noqa: N818
    def __init__(self, left: str, *, right: int) -> None:
        super().__init__(f"{left} and {right}")
        self.left = left
        self.right = right


class OddText(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError


class Holder(Exception):  # noqa: N818
    def __init__(self, thing: object) -> None:
        super().__init__("holds a thing")
        self.thing = thing


class Model(BaseModel):
    number: int


def through_the_log(error: BaseException) -> Any:
    codec = JsonCodec()
    return codec.decode(codec.encode(error))


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_a_constructor_with_keywords_is_no_obstacle() -> None:
    restored = through_the_log(TwoArguments("a", right=2))

    assert type(restored) is TwoArguments
    assert (str(restored), restored.left, restored.right) == ("a and 2", "a", 2)


def test_a_frameworks_exception_keeps_its_attributes() -> None:
    restored = through_the_log(HTTPException(404, "gone", headers={"x-a": "1"}))

    assert type(restored) is HTTPException
    assert (restored.status_code, restored.detail) == (404, "gone")
    assert restored.headers == {"x-a": "1"}


def test_the_fields_of_builtin_errors_survive() -> None:
    restored = through_the_log(FileNotFoundError(2, "no such file", "a.txt"))

    assert (restored.errno, restored.filename) == (2, "a.txt")


def test_cause_notes_and_traceback_text_survive() -> None:
    error = raised(ValueError("outer"), KeyError("inner"))
    error.add_note("seen on a Tuesday")

    restored = through_the_log(error)

    assert repr(restored.__cause__) == "KeyError('inner')"
    assert restored.__notes__[:-1] == ["seen on a Tuesday"]
    assert "in raised" in restored.durable_traceback


def test_whatever_prints_a_restored_error_shows_where_each_of_a_chain_was_raised() -> None:
    error = raised(ValueError("outer"), raised(KeyError("inner")))
    for _ in range(3):
        error = through_the_log(error)
        text = "".join(traceback.format_exception(error))

        assert text.count("in raised\n    raise error from cause") == 2
        assert text.count("Recorded traceback") == 2
        assert (str(error), str(error.__cause__)) == ("outer", "'inner'")


def test_an_error_in_the_place_of_another_one_shows_both() -> None:
    try:
        try:
            raise KeyError("first" * 1000)
        except KeyError:
            raise ValueError("second")  # noqa: B904
    except ValueError as caught:
        error = caught

    text = "".join(traceback.format_exception(through_the_log(error)))

    assert all(line in text for line in ("raise KeyError(", "While that was", "raise ValueError("))
    assert text.count("first") < 300


def test_a_recorded_traceback_has_a_limit_and_keeps_the_innermost_frames() -> None:
    def fall(depth: int) -> None:
        if depth == 0:
            raise ValueError
        (rise if depth % 2 else fall)(depth - 1)

    def rise(depth: int) -> None:
        fall(depth - 1) if depth else fall(0)

    try:
        fall(600)
    except ValueError as caught:
        error = caught

    text = through_the_log(error).durable_traceback

    assert len(text) <= 16_384
    assert text.endswith("raise ValueError\n")


def test_an_error_that_was_recorded_with_a_whole_traceback_is_read() -> None:
    text = 'Traceback (most recent call last):\n  File "shop.py", line 1, in pay\nValueError: x\n'
    packed = {"$": "error", "t": "builtins:ValueError", "m": "x", "a": ["x"], "s": {}, "tb": text}

    restored = JsonCodec().decode(json.dumps(packed | {"n": ["note"]}).encode())
    once_more = through_the_log(restored)

    for error in (restored, once_more):
        assert repr(error) == "ValueError('x')"
        assert error.__notes__[0] == "note"
        assert len(error.__notes__) == 2
        assert "".join(traceback.format_exception(error)).count('"shop.py", line 1, in pay') == 1


def test_an_error_that_was_never_raised_has_no_traceback_to_show() -> None:
    assert not hasattr(through_the_log(ValueError("x")), "__notes__")


def test_the_first_traceback_is_kept_when_an_error_is_recorded_again() -> None:
    once = through_the_log(raised(ValueError("x")))

    twice = through_the_log(once)

    assert twice.durable_traceback == once.durable_traceback


def test_a_group_keeps_its_members() -> None:
    restored = through_the_log(ExceptionGroup("two", [ValueError("a"), TypeError("b")]))

    assert [repr(error) for error in restored.exceptions] == ["ValueError('a')", "TypeError('b')"]


def test_a_class_that_cannot_be_rebuilt_comes_back_as_remote_error() -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"number": "x"})

    restored = through_the_log(caught.value)

    assert type(restored) is RemoteError
    assert restored.type_name.endswith(":ValidationError")
    assert "number" in str(restored)


def test_a_local_class_comes_back_as_remote_error() -> None:
    class LocalError(Exception):
        pass

    restored = through_the_log(LocalError("here"))

    assert type(restored) is RemoteError
    assert str(restored).endswith("LocalError: here")


def test_exceptions_that_refer_to_each_other_have_an_end() -> None:
    error = Holder(None)
    error.thing = error.other = error  # type: ignore[attr-defined]
    error.__cause__ = Holder(error)

    restored = through_the_log(error)

    assert type(restored) is Holder
    assert str(restored.thing) == "holds a thing"


def test_a_chain_that_is_kept_twice_stays_small() -> None:
    error = raised(ValueError("first"))
    for number in range(30):
        error = raised(Holder(error), error)
        error.args = (f"level {number}",)

    assert len(JsonCodec().encode(error)) < 1_000_000


class Falsy(Exception):  # noqa: N818
    def __len__(self) -> int:
        return 0


class Frozen(Exception):  # noqa: N818
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@pytest.mark.parametrize("cls", [Falsy, Frozen])
def test_a_class_with_odd_manners_comes_back(cls: type[Exception]) -> None:
    assert type(through_the_log(cls("x"))) is cls


def test_text_that_cannot_be_made_does_not_break_the_log() -> None:
    restored = through_the_log(OddText())

    assert "no message" in str(restored)


def test_an_attribute_that_cannot_be_recorded_is_none() -> None:
    restored = through_the_log(Holder(object()))

    assert type(restored) is Holder
    assert restored.thing is None


def test_a_stored_name_imports_nothing() -> None:
    name = "antigravity:SomeError"
    data = b'{"$":"error","t":"%s","m":"x","a":[],"s":{},"tb":""}' % name.encode()

    restored = JsonCodec().decode(data)

    assert type(restored) is RemoteError
    assert "antigravity" not in sys.modules


def test_a_stored_name_reaches_nothing_but_exceptions() -> None:
    data = b'{"$":"error","t":"os:system","m":"x","a":["true"],"s":{},"tb":""}'

    assert type(JsonCodec().decode(data)) is RemoteError


def local_error(base: type[DurableError] = DurableError, **attributes: object) -> DurableError:
    """Return an error whose class nobody finds again."""

    class LocalError(base):  # type: ignore[valid-type,misc]
        title = "No money"

    error: DurableError = LocalError("card 7 is empty", code="CARD_EMPTY", status_code=402)
    vars(error).update(attributes)
    return error


@pytest.mark.parametrize(
    "error",
    [
        local_error(),
        local_error(retry_after_seconds=9),
        local_error(FinalError),
        local_error(StorageUnavailableError),
        local_error(StorageError),
    ],
    ids=["plain", "when to retry", "final", "retryable", "that shows no message"],
)
def test_a_durable_error_that_cannot_be_rebuilt_is_answered_as_before(error: DurableError) -> None:
    once = through_the_log(error)
    twice = through_the_log(once)

    assert (type(once), type(twice)) == (RemoteError, RemoteError)
    assert problem_response(once) == problem_response(twice) == problem_response(error)
    assert is_kind_of(twice, FinalError) == isinstance(error, FinalError)


def test_an_error_that_no_codec_can_write_is_answered_as_before() -> None:
    class Refusing(JsonCodec):
        def encode(self, value: object) -> bytes:
            if isinstance(value, DurableError) and not isinstance(value, RemoteError):
                raise EncodeError
            return super().encode(value)

    error, codec = local_error(FinalError), Refusing()

    restored = codec.decode(encode_error(Values(codec, Sealer()), error))

    assert problem_response(restored) == problem_response(error)


@pytest.mark.parametrize(
    "answer",
    [None, "402", {}, {"status": 200, "code": "X"}, {"status": True, "code": "X"}, {"status": 402}],
)
def test_an_answer_that_makes_no_sense_is_none(answer: object) -> None:
    error = stand_in("shop:NoMoneyError", "empty", answer)

    assert (error.status_code, error.code, error.detail) == (500, "REMOTE_ERROR", error.title)
