"""Values that JSON has take a fast path, and are written as before."""

from __future__ import annotations

import enum
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_durable import DecodeError, JsonCodec
from asgi_durable.codec.tagged.plain import MAX_LEVELS, write_plain

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = (
    st.text() | st.text(st.characters(codec="ascii")) | st.sampled_from(["$", "\x7f", "\\u0024"])
)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


def is_tagged(value: Any) -> bool:
    """Return True if the member that names tags is a key of the value itself."""
    if isinstance(value, dict):
        return "$" in value or any(map(is_tagged, value.values()))
    return isinstance(value, list) and any(map(is_tagged, value))


@given(PLAIN)
def test_the_bytes_are_those_of_pythons_own_json(value: Any) -> None:
    codec = JsonCodec()
    data = codec.encode(value)

    if not is_tagged(value):
        assert data == json.dumps(value, separators=(",", ":")).encode()
    restored = codec.decode(data)
    assert repr(restored) == repr(value)


@given(PLAIN)
def test_text_that_is_not_escaped_is_read_as_well(value: Any) -> None:
    if not is_tagged(value):
        data = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
        try:
            assert repr(JsonCodec().decode(data)) == repr(value)
        except DecodeError:
            assert b"\xed" in data  # halves of surrogate pairs, which are no UTF-8


class Text(str):
    __slots__ = ()


class Size(enum.IntEnum):
    SMALL = 1


@pytest.mark.parametrize(
    "value",
    [
        {"a": Text("x")},
        {Text("a"): 1},
        {"a": [Size.SMALL]},
        {"a": (1,)},
        [{1}],
        {1: 2},
        {None: 1},
        {"$": 1},
        [2**63],
        [-(2**63) - 1],
        [float("nan")],
        [1e300],
        [b"x"],
    ],
    ids=repr,
)
def test_what_msgspec_would_write_as_something_else_does_not_take_the_short_way(value: Any) -> None:
    assert write_plain(value) is None


def test_the_short_way_has_an_end() -> None:
    value: Any = 1
    for _ in range(MAX_LEVELS):
        value = [value]

    assert write_plain(value) is not None
    assert write_plain({"a": value}) is None
    assert JsonCodec().decode(JsonCodec().encode({"a": value})) == {"a": value}


def test_a_plain_value_that_contains_itself_is_left_to_the_long_way() -> None:
    value: dict[str, Any] = {}
    value["me"] = [value]

    assert write_plain(value) is None


def test_a_number_of_any_length_is_read() -> None:
    limit = sys.get_int_max_str_digits()

    assert JsonCodec().decode(b"9" * 100) == 10**100 - 1
    with pytest.raises(DecodeError):
        JsonCodec().decode(b"[%b]" % (b"9" * (limit + 1)))
