"""Server-sent events: their ends, their ids, and the place where a client continues."""

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

# Two ends of lines; the first half of CR LF is none.
_END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_OUR_ID = re.compile(rb"([0-9a-f]{1,16})-([0-9]{1,18})")


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Tell whether a response's headers announce events."""
    media_type = header_values(headers, b"content-type")
    return bool(media_type) and media_type[0].lower().startswith(b"text/event-stream")


def last_event_id(scope: Scope) -> bytes | None:
    """Return which event a request's client has seen last, ``None`` if it does not say."""
    values = header_values(scope["headers"], b"last-event-id")
    return values[0] if values and values[0] else None


def is_offset(value: bytes) -> bool:
    """Tell whether it is an offset of a recorded stream, or the id of an event, of any one."""
    return bool(_OUR_ID.fullmatch(value))


def end_of_events(data: bytes | bytearray, known: int) -> int:
    """Return the length of the whole events that data begins with.

    Args:
        data: Of a stream, from the beginning of an event.
        known: So many bytes of it are known to hold no end of an event.
    """
    end = 0
    for found in _END_OF_EVENT.finditer(data, max(0, known - 3)):
        end = found.end()
    return end


def without_comments(data: bytes) -> bytes:
    """Return whole events without those that say nothing, which keep a connection alive."""
    return b"".join(event for event in _events(data) if not _says_nothing(event))


class StreamIds:
    """The ids of one recorded stream's events: each is unique, whatever is cut.

    An id is made of the time at which the request was claimed, and of the end of the event.

    Args:
        created_at_us: The time at which the request was claimed.
    """

    def __init__(self, created_at_us: int) -> None:
        self._prefix = b"%x" % created_at_us

    def id_at(self, offset: int) -> bytes:
        """Return the id of an event that ends at an offset."""
        return b"%s-%d" % (self._prefix, offset)

    def sorted_at(self, offset: int) -> bytes:
        """Return the id that stands for an offset, so that later ones are greater as strings."""
        return b"%s-%018d" % (self._prefix, offset)

    def offset_of(self, event_id: bytes) -> int | None:
        """Return where the event ends that has an id; ``None`` for any other id."""
        found = _OUR_ID.fullmatch(event_id)
        return int(found[2]) if found is not None and found[1] == self._prefix else None

    def is_of_another(self, event_id: bytes) -> bool:
        """Tell whether it is the id of an event of another stream that was recorded."""
        return bool(_OUR_ID.fullmatch(event_id)) and self.offset_of(event_id) is None

    def added_to(self, data: bytes, end_offset: int) -> bytes:
        """Return events, each with an id that has data, no id of its own, and is whole."""
        begin = offset = end_offset - len(data)
        parts = []
        for event in _events(data):
            offset += len(event)
            if _has_field(event, b"data") and not _has_field(event, b"id"):
                # Behind the end of a line that belongs to the event before.
                content = event.lstrip(b"\r\n")
                parts.append(event[: len(event) - len(content)])
                parts.append(b"id: %s\n" % self.id_at(offset))
                parts.append(content)
            else:
                parts.append(event)
        return b"".join([*parts, data[offset - begin :]])

    def last_of(self, data: bytes, end_offset: int) -> bytes | None:
        """Return the last id of whole events, those that are added included."""
        found = None
        for line in self.added_to(data, end_offset).splitlines():
            if line.startswith(b"id:"):
                found = line[3:].removeprefix(b" ")
        return found

    def rollback(self, at: int, to: bytes) -> bytes:
        """Return the event, itself at an offset, that takes back what is behind an id."""
        return b"event: rollback\nid: %s\ndata: %s\n\n" % (self.id_at(at), to)


def _events(data: bytes) -> Iterator[bytes]:
    begin = 0
    for found in _END_OF_EVENT.finditer(data):
        yield data[begin : found.end()]
        begin = found.end()


def _says_nothing(event: bytes) -> bool:
    return all(not line or line.startswith(b":") for line in event.splitlines())


def _has_field(event: bytes, name: bytes) -> bool:
    return any(line == name or line.startswith(name + b":") for line in event.splitlines())
