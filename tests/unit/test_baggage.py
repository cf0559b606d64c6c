"""W3C baggage, read by its grammar and written within its limit."""

from __future__ import annotations

import pytest

from asgi_durable.telemetry.baggage import (
    MAX_BAGGAGE_BYTES,
    baggage_of,
    format_baggage,
    parse_baggage,
    trace_of,
    with_baggage,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (None, {}),
        ("", {}),
        ("a=1", {"a": "1"}),
        (" a \t=\t1 ,b=2", {"a": "1", "b": "2"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=", {"a": ""}),
        ("a=x=y", {"a": "x=y"}),
        ("a=1;p;q=2 ; r = 3", {"a": "1"}),
        ("a=%C3%A9%20%2C%3B%25+b", {"a": "é ,;%+b"}),
        ("a=%FF", {"a": "\ufffd"}),
        ("A=1,a=2", {"A": "1", "a": "2"}),
    ],
)
def test_members_are_decoded(text: str | None, members: dict[str, str]) -> None:
    assert parse_baggage(text) == members


@pytest.mark.parametrize(
    "member",
    ["", " ", "x", "=1", "x y=1", "x(=1", "é=1", "x=1 2", 'x="1"', "x=é", "x=\\", "x=1;", "x=1;?="],
)
def test_malformed_members_are_left_out_alone(member: str) -> None:
    assert parse_baggage(f"a=1,{member},b=2") == {"a": "1", "b": "2"}


def test_members_that_nobody_wants_are_left_out() -> None:
    assert parse_baggage("a=1,b=2", {"b", "c"}) == {"b": "2"}


@pytest.mark.parametrize("value", ["", "plain", 'é ,;%+b"\\', "\n\x00\x7f", "\ufffd", "a=b"])
def test_what_is_written_is_read_again(value: str) -> None:
    text = format_baggage({"k": value, "other": "1"})

    assert text is not None
    assert text.isascii()
    assert text.isprintable()
    assert parse_baggage(text) == {"k": value, "other": "1"}


def test_members_that_do_not_fit_are_left_out_whole() -> None:
    members = {"a": "x" * 500, "long": "y" * 600, "b": "z" * 500, "é": " " * 100, "c": "1"}

    text = format_baggage(members)

    assert text == f"a={'x' * 500},b={'z' * 500},c=1"
    assert len(text) <= MAX_BAGGAGE_BYTES


@pytest.mark.parametrize("length", [MAX_BAGGAGE_BYTES - 2, MAX_BAGGAGE_BYTES - 1])
def test_the_limit_is_exact(length: int) -> None:
    text = format_baggage({"a": "x" * length})

    assert (text is not None) == (length + len("a=") <= MAX_BAGGAGE_BYTES)


def test_nothing_is_no_baggage() -> None:
    assert format_baggage({}) is None


@pytest.mark.parametrize("trace", [None, TRACE, f"{TRACE} a=1 2,b=3"])
@pytest.mark.parametrize("baggage", [None, "a=1,b=2"])
def test_trace_and_baggage_are_told_apart(trace: str | None, baggage: str | None) -> None:
    kept = with_baggage(trace, baggage)

    assert (trace_of(kept), baggage_of(kept)) == (trace, baggage)
