"""The W3C headers of a trace: what is handed on, and what is no trace at all."""

from __future__ import annotations

import pytest

from asgi_durable.telemetry.trace_headers import parse_traceparent, parse_tracestate

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (SAMPLED, SAMPLED),
        (f" {SAMPLED}\t", SAMPLED),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        # The flags that are known, and no others.
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03"),
        # Of a later version the beginning, and of its flags the one that all versions have.
        (f"cc-{TRACE}-{SPAN}-03", SAMPLED),
        (f"cc-{TRACE}-{SPAN}-01-what the future will be like", SAMPLED),
    ],
)
def test_a_trace_is_handed_on_in_our_version(sent: str, kept: str) -> None:
    assert parse_traceparent(sent) == kept


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "00",
        SAMPLED.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
        f"{SAMPLED}-more",
        f"{SAMPLED}-",
        f"cc-{TRACE}-{SPAN}-01more",
        f"{SAMPLED},{SAMPLED}",
        f"00-{TRACE}-{SPAN}-\xb2\xb9",
    ],
)
def test_anything_else_is_no_trace(sent: str) -> None:
    assert parse_traceparent(sent) is None


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("vendor=1", "vendor=1"),
        ("a=1, ,\tb@c=2 3 ,", "a=1,b@c=2 3"),
        ("1a=x", "1a=x"),
        ("a=" + "x" * 256, "a=" + "x" * 256),
        (",".join(f"k{number}=v" for number in range(32)),) * 2,
    ],
)
def test_the_members_of_a_state_are_handed_on(sent: str, kept: str) -> None:
    assert parse_tracestate(sent) == kept


@pytest.mark.parametrize(
    "sent",
    [
        "",
        " , ",
        "a",
        "a=",
        "=1",
        "A=1",
        "a=1=2",
        "a=\x7f",
        "a=\xe4",
        "a=1\nb=2",
        "a=1,a=2",
        "a=" + "x" * 257,
        "a" * 257 + "=1",
        ",".join(f"k{number}=v" for number in range(33)),
        "a=" + "x" * 256 + ",b=" + "x" * 256,
    ],
)
def test_a_state_that_is_malformed_or_too_long_is_dropped(sent: str) -> None:
    assert parse_tracestate(sent) is None
