"""Server-sent events as bytes: where they end, and what is added to them."""

from __future__ import annotations

import pytest

from asgi_durable.middleware.responses.server_sent_events import (
    StreamIds,
    end_of_events,
    is_event_stream,
    without_comments,
)

IDS = StreamIds(0xAB)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"data: a", 0),
        (b"data: a\n", 0),
        (b"data: a\r\n", 0),
        (b"data: a\r\ndata: b\r\n", 0),
        (b"data: a\n\n", 9),
        (b"data: a\r\n\r\n", 11),
        (b"data: a\r\r", 9),
        (b"data: a\r\n\n", 10),
        (b"data: a\n\ndata: b", 9),
        (b"data: a\n\ndata: b\n\n", 18),
    ],
)
def test_an_event_ends_with_an_empty_line(data: bytes, end: int) -> None:
    assert end_of_events(data, 0) == end


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_an_end_is_found_wherever_the_bytes_are_cut(line_end: bytes) -> None:
    data = b"data: a" + line_end + b"data: b" + line_end * 2
    for place in range(len(data)):
        if not end_of_events(data[:place], 0):
            assert end_of_events(data, place) == len(data)


def test_data_without_an_id_gets_one_with_its_end_offset() -> None:
    events = [
        b"data: a\n\n",
        b"id: 7\ndata: b\n\n",
        b"event: c\ndata\n\n",
        b"event: d\n\n",
        b"data: e",
    ]
    data = b"".join(events)

    added = IDS.add_ids(data, len(data) + 100)

    events[0] = b"id: ab-109\n" + events[0]
    events[2] = b"id: ab-139\n" + events[2]
    assert added == b"".join(events[:4]) + b"data: e"


def test_the_rest_of_a_line_end_stays_with_the_event_before() -> None:
    assert IDS.add_ids(b"\ndata: a\r\n\r\n", 12) == b"\nid: ab-12\ndata: a\r\n\r\n"


def test_comments_are_left_out_where_they_are_alone() -> None:
    data = b": ping\n\ndata: a\n\n:\r\n\r\n: about\ndata: b\n\n\n\n"

    assert without_comments(data) == b"data: a\n\n: about\ndata: b\n\n"


def test_an_id_belongs_to_one_stream() -> None:
    assert IDS.offset_of(IDS.id_at(12)) == 12
    assert [IDS.offset_of(other) for other in (b"ac-12", b"ab-", b"12", b"ab-1 ", b"")] == [
        None
    ] * 5
    assert IDS.is_from_other_stream(b"ac-12")
    assert not any(map(IDS.is_from_other_stream, (IDS.id_at(1), b"mine", b"12")))


def test_the_last_id_is_that_of_the_last_event_that_has_one() -> None:
    assert IDS.last_id_in(b"data: a\n\nid: 7\ndata: b\n\nevent: c\n\n", 34) == b"7"
    assert IDS.last_id_in(b"data: a\n\n", 9) == b"ab-9"
    assert IDS.last_id_in(b"event: c\n\n", 10) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], False),
        ([(b"Content-Type", b"Text/Event-Stream; charset=utf-8")], True),
        ([(b"content-type", b"text/plain")], False),
    ],
)
def test_the_media_type_announces_events(
    headers: list[tuple[bytes, bytes]], expected: bool
) -> None:
    assert is_event_stream(headers) == expected
