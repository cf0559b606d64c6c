"""An exception with any content is recorded, and comes back as itself or as a stand-in."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_durable import DurableError, JsonCodec, RemoteError
from asgi_durable.codec.exceptions.unrecorded import Unrecorded


class Unknown:
    """A value that cannot be recorded."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Telling(Exception):  # noqa: N818
    def __str__(self) -> str:
        return f"{self.args} {sorted(name for name in vars(self) if len(name) <= 5)}"


class Slotted(Exception):  # noqa: N818
    __slots__ = ("first", "second")


CLASSES: list[Any] = [
    *(ValueError, KeyError, OSError, BlockingIOError, ImportError, SyntaxError, StopIteration),
    *(UnicodeDecodeError, ExceptionGroup, AttributeError, subprocess.CalledProcessError),
    *(asyncio.IncompleteReadError, DurableError, Telling, Slotted),
]

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = plain | texts | st.binary(max_size=20) | texts.map(Unknown)
values = st.recursive(
    scalars | st.sampled_from([ValueError("inner"), OSError(2, "inner")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=5,
)


def made(cls: Any, arguments: list[Any], attributes: dict[str, Any], notes: list[str]) -> Any:
    try:
        error = cls.__new__(cls, *arguments)
        Exception.__init__(error, *arguments)
    except (TypeError, ValueError):
        error = ValueError(*arguments)
    vars(error).update(attributes)
    for note in notes:
        error.add_note(note)
    return error


def content(error: BaseException) -> object:
    own = {name: repr(value) for name, value in vars(error).items() if name != "__notes__"}
    return type(error), repr(error.args), own, getattr(error, "__notes__", [])


def is_lost(value: object) -> bool:
    return "Unknown" in str(type(value)) or (
        isinstance(value, (list, tuple, dict))
        and any(map(is_lost, value.values() if isinstance(value, dict) else value))
    )


errors = st.builds(
    made,
    st.sampled_from(CLASSES),
    st.lists(values, max_size=4),
    st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), values, max_size=3),
    st.lists(texts, max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(error=errors, cause=st.none() | errors)
def test_any_exception_is_recorded_and_is_itself_or_what_stands_for_it(
    error: Any, cause: Any
) -> None:
    codec = JsonCodec()
    error.__cause__ = cause

    once = codec.decode(codec.encode(error))
    twice = codec.decode(codec.encode(once))

    assert content(twice) == content(once)
    assert (once.__cause__ is None) == (cause is None)
    if type(once) is RemoteError:
        assert "Recorded without its class" in "".join(once.__notes__)
        return
    assert type(once) is type(error)
    assert str(once) == str(error)
    for name, value in vars(error).items():
        if name == "__notes__":
            assert once.__notes__[: len(value)] == value
        elif is_lost(value):
            assert name in once.durable_unrecorded
            assert name not in vars(once)
        else:
            assert repr(vars(once)[name]) == repr(value)
    for value, argument in zip(error.args, once.args, strict=True):
        assert is_lost(value) == isinstance(argument, Unrecorded)
        assert repr(argument) == repr(value)
