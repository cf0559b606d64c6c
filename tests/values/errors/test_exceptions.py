"""Exceptions that are written to the step log and read again."""

from __future__ import annotations

import enum
import json
import sys
import traceback
from typing import Any, Self

import pytest
from fastapi import HTTPException

from asgi_durable import (
    DurableError,
    EncodeError,
    FinalError,
    JsonCodec,
    RemoteError,
    StorageError,
    StorageUnavailableError,
)
from asgi_durable.codec.exceptions.stored_responses import is_kind_of, stand_in
from asgi_durable.codec.sealing.sealer import Sealer
from asgi_durable.codec.values import Values
from asgi_durable.engine.process.recorded_errors import encode_error
from asgi_durable.middleware.problem_details import problem_response
from asgi_durable.payloads import Payloads


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


class Color(enum.Enum):
    RED = 1


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
    error = FileNotFoundError(2, "no such file", "a.txt")

    restored = through_the_log(error)

    assert (restored.errno, restored.filename, restored.args) == (2, "a.txt", error.args)
    # As the former version requires it.
    assert json.loads(JsonCodec().encode(error))["a"] == [2, "no such file", "a.txt"]


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


class Counting(Exception):  # noqa: N818
    """An error whose message is made of a value that cannot be recorded."""

    def __init__(self, things: object) -> None:
        super().__init__()
        self.things = things

    def __str__(self) -> str:
        return f"{len(self.things)} things"  # type: ignore[arg-type]


def test_an_error_that_would_come_back_with_another_message_is_a_remote_error() -> None:
    restored = through_the_log(raised(Counting(memoryview(b"ab")), KeyError("k")))

    assert type(restored) is RemoteError
    assert restored.type_name.endswith(":Counting")
    assert restored.message == "2 things"
    assert repr(restored.__cause__) == "KeyError('k')"
    assert "register_exception" in restored.__notes__[0]
    assert "in raised" in restored.durable_traceback


class Twice(Exception):  # noqa: N818
    pass


First = Twice


class Twice(Exception):  # type: ignore[no-redef]  # noqa: N818
    pass


def test_two_classes_of_one_name_are_not_confused() -> None:
    elder, younger = through_the_log(First("x")), through_the_log(Twice("x"))

    assert type(elder) is RemoteError
    assert "is another class there" in elder.__notes__[0]
    assert type(younger) is Twice


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


def test_an_attribute_that_cannot_be_recorded_is_not_set_and_a_note_names_it() -> None:
    once = through_the_log(Holder(memoryview(b"x")))
    twice = through_the_log(once)

    for restored in (once, twice):
        assert type(restored) is Holder
        assert not hasattr(restored, "thing")
        assert restored.durable_unrecorded == {"thing": "builtins.memoryview"}
        text = "".join(traceback.format_exception(restored))
        assert (
            text.count("not set, as they could not be recorded: thing (builtins.memoryview)") == 1
        )
        assert "durable.register_exception()" in text


def test_reading_an_attribute_that_was_not_recorded_is_an_error_that_explains() -> None:
    restored = through_the_log(Holder(memoryview(b"x")))
    with pytest.raises(AttributeError) as caught:
        restored.thing.cast("B")
    with pytest.raises(AttributeError) as other:
        restored.no_such_thing  # noqa: B018

    for _ in range(2):
        explained = through_the_log(caught.value)

    assert "'thing'" in explained.__notes__[0]
    assert "a builtins.memoryview, could not be recorded" in explained.__notes__[0]
    assert caught.value.__notes__ == explained.__notes__[:1]
    assert "could not be" not in str(through_the_log(other.value).__notes__)


def test_an_argument_that_cannot_be_recorded_keeps_its_text_and_explains() -> None:
    thing = memoryview(b"x")
    error = ValueError("about", thing)

    once = through_the_log(error)
    twice = through_the_log(once)

    assert str(twice) == str(once) == str(error)
    assert twice.args == once.args
    assert repr(once.args[1]) == repr(thing)
    with pytest.raises(AttributeError, match=r"could not be recorded.*register_exception"):
        once.args[1].tobytes()
    assert str(through_the_log(ValueError(thing))) == str(thing)


class Slotted(Exception):  # noqa: N818
    __slots__ = ("__own", "code")

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code
        self.__own = [code]

    @property
    def own(self) -> list[int]:
        return self.__own


def test_slots_are_kept() -> None:
    restored = through_the_log(Slotted(7))

    assert (type(restored), restored.code, restored.own) == (Slotted, 7, [7])
    assert "code" not in vars(restored)


class ReformedError(OSError):
    def __init__(self, text: str, extra: object) -> None:
        super().__init__(5, text)
        self.args = (text, extra)


def test_arguments_that_were_set_afterwards_are_kept() -> None:
    restored = through_the_log(ReformedError("text", Color.RED))

    assert type(restored) is ReformedError
    assert (restored.errno, restored.strerror, restored.args[0]) == (5, "text", "text")
    assert str(restored) == "[Errno 5] text"


class Coded(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception], code: int) -> Self:
        group = super().__new__(cls, "coded", errors)
        group.code = code
        return group

    code: int


def test_a_group_of_a_class_with_a_constructor_of_its_own_is_kept() -> None:
    inner = Coded([Holder(memoryview(b"x")), ValueError("b")], 1)

    restored = through_the_log(ExceptionGroup("outer", [inner, KeyError("c")]))

    coded, other = restored.exceptions
    assert (type(coded), coded.code, str(coded)) == (Coded, 1, "coded (2 sub-exceptions)")
    assert [type(error) for error in coded.exceptions] == [Holder, ValueError]
    assert not hasattr(coded.exceptions[0], "thing")
    assert repr(other) == "KeyError('c')"


def test_a_group_with_what_is_no_exception_of_applications_is_kept() -> None:
    group = ExceptionGroup("both", [ValueError("a")])
    group.__cause__ = BaseExceptionGroup("all", [KeyboardInterrupt(), ValueError("b")])

    restored = through_the_log(group)

    assert type(restored) is ExceptionGroup
    assert type(restored.__cause__) is RemoteError


@pytest.mark.parametrize("length", [65_536, 65_537, 1_000_000])
@pytest.mark.parametrize("cls", [ValueError, DurableError, RuntimeError])
def test_a_message_of_any_length_keeps_its_class(cls: type[Exception], length: int) -> None:
    data = JsonCodec().encode(cls("x" * length))

    assert repr(JsonCodec().decode(data)) == repr(cls("x" * length))
    if cls is ValueError:
        assert len(data) < 2 * max(length, 65_537)


class OddNotes(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("notes", [None, 7, "text", [OddText()], [1, None]])
def test_notes_that_are_no_texts_do_not_break_the_log(notes: object) -> None:
    error = OddNotes("x")
    vars(error)["__notes__"] = notes

    assert type(through_the_log(error)) is OddNotes


def test_a_list_that_contains_itself_does_not_break_the_log() -> None:
    endless: list[object] = []
    endless.append(endless)

    assert type(through_the_log(ValueError("x", endless))) is ValueError


def former(error: BaseException, **members: object) -> bytes:
    """Return a record of the former version: it had no mark, and cut the message."""
    packed = {"$": "error", "t": f"{__name__}:{type(error).__name__}", "m": str(error)[:65_536]}
    packed |= {"a": list(error.args), "s": vars(error), "tb": ""}
    return json.dumps(packed | members).encode()


def test_a_record_of_the_version_before_comes_back_as_it_did() -> None:
    odd = former(ValueError("x"), t="builtins:ValueError", m="another message")
    cut = former(ValueError("x" * 70_000), t="builtins:ValueError")
    own = JsonCodec().decode(former(TwoArguments("a", right=2), c=None))
    lost = JsonCodec().decode(former(Counting("ab"), s={"things": None}))

    assert type(JsonCodec().decode(odd)) is RemoteError
    assert type(JsonCodec().decode(cut)) is RemoteError
    assert (type(own), own.left, own.right) == (TwoArguments, "a", 2)
    assert (type(lost), lost.things) == (Counting, None)


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
    """Return an error whose class cannot be found by its name."""

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

    restored = codec.decode(encode_error(Values(codec, Sealer(Payloads())), error))

    assert problem_response(restored) == problem_response(error)


@pytest.mark.parametrize(
    "answer",
    [None, "402", {}, {"status": 200, "code": "X"}, {"status": True, "code": "X"}, {"status": 402}],
)
def test_an_answer_that_makes_no_sense_is_none(answer: object) -> None:
    error = stand_in("shop:NoMoneyError", "empty", answer)

    assert (error.status_code, error.code, error.detail) == (500, "REMOTE_ERROR", error.title)
