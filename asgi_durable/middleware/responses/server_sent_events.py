"""Server-sent events: where an event ends, and the ids with which a client resumes a stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from asgi_durable.middleware.asgi import Scope, header_values

__all__ = [
    "StreamIds",
    "end_of_events",
    "is_event_stream",
    "is_offset",
    "last_event_id",
    "without_comments",
]

# Two line ends. A CR in front of LF is only the first half of one.
_END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LIBRARY_ID = re.compile(rb"([0-9a-f]{1,16})-([0-9]{1,18})")


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a response with these headers consists of events."""
    media_type = header_values(headers, b"content-type")
    return bool(media_type) and media_type[0].lower().startswith(b"text/event-stream")


def last_event_id(scope: Scope) -> bytes | None:
    """Return a request's ``Last-Event-ID``, ``None`` if it has none."""
    values = header_values(scope["headers"], b"last-event-id")
    return values[0] if values and values[0] else None


def is_offset(value: bytes) -> bool:
    """Return whether a value is an offset, or an event's id, of any recorded stream."""
    return bool(_LIBRARY_ID.fullmatch(value))


def end_of_events(data: bytes | bytearray, known: int) -> int:
    """Return the length of the complete events at the beginning of data.

    Args:
        data: Bytes of a stream, from the beginning of an event.
        known: Number of leading bytes that were searched before, and in which no event ends.
    """
    end = 0
    for found in _END_OF_EVENT.finditer(data, max(0, known - 3)):
        end = found.end()
    return end


def without_comments(data: bytes) -> bytes:
    """Return complete events without the empty ones, which only keep a connection alive."""
    return b"".join(event for event in _events(data) if not _is_empty(event))


class StreamIds:
    """The ids of one recorded stream's events. No two events have the same id.

    An id consists of the time when the request was claimed and the offset at which the event
    ends, for example ``5f0c3b2a91d40-1024``. Offsets of deleted chunks are not used again.

    Args:
        created_at_us: The time when the request was claimed, in microseconds.
    """

    def __init__(self, created_at_us: int) -> None:
        self._prefix = b"%x" % created_at_us

    def id_at(self, offset: int) -> bytes:
        """Return the id of the event that ends at an offset."""
        return b"%s-%d" % (self._prefix, offset)

    def sortable_id_at(self, offset: int) -> bytes:
        """Return an id for an offset. Ids of greater offsets are greater as strings."""
        return b"%s-%018d" % (self._prefix, offset)

    def offset_of(self, event_id: bytes) -> int | None:
        """Return the offset in an id of this stream; ``None`` for any other id."""
        found = _LIBRARY_ID.fullmatch(event_id)
        return int(found[2]) if found is not None and found[1] == self._prefix else None

    def is_from_other_stream(self, event_id: bytes) -> bool:
        """Return whether an id belongs to an event of another recorded stream."""
        return bool(_LIBRARY_ID.fullmatch(event_id)) and self.offset_of(event_id) is None

    def add_ids(self, data: bytes, end_offset: int) -> bytes:
        """Return data in which each complete event with data has an id, its own or an added one.

        Args:
            data: Bytes of a stream.
            end_offset: The offset at which they end.
        """
        begin = offset = end_offset - len(data)
        parts = []
        for event in _events(data):
            offset += len(event)
            if _has_field(event, b"data") and not _has_field(event, b"id"):
                # Line ends in front of the event belong to the event before it.
                content = event.lstrip(b"\r\n")
                parts.append(event[: len(event) - len(content)])
                parts.append(b"id: %s\n" % self.id_at(offset))
                parts.append(content)
            else:
                parts.append(event)
        return b"".join([*parts, data[offset - begin :]])

    def last_id_in(self, data: bytes, end_offset: int) -> bytes | None:
        """Return the last id in complete events, including added ids; ``None`` if there is none."""
        found = None
        for line in self.add_ids(data, end_offset).splitlines():
            if line.startswith(b"id:"):
                found = line[3:].removeprefix(b" ")
        return found

    def rollback_event(self, at: int, to: bytes) -> bytes:
        """Return the event that makes a client drop all events behind another one.

        Args:
            at: The offset of the returned event.
            to: The id of the last event that stays; empty to drop all events.
        """
        return b"event: rollback\nid: %s\ndata: %s\n\n" % (self.id_at(at), to)


def _events(data: bytes) -> Iterator[bytes]:
    begin = 0
    for found in _END_OF_EVENT.finditer(data):
        yield data[begin : found.end()]
        begin = found.end()


def _is_empty(event: bytes) -> bool:
    return all(not line or line.startswith(b":") for line in event.splitlines())


def _has_field(event: bytes, name: bytes) -> bool:
    return any(line == name or line.startswith(name + b":") for line in event.splitlines())
