"""Catch-up reads: the part of a recorded stream behind an offset, without waiting for more.

This is the catch-up read of the Durable Streams protocol. Its live modes and its JSON arrays are
not served.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs

from asgi_durable.engine.requests.response_streams import (
    StreamDamagedError,
    StreamLostError,
    Streams,
)
from asgi_durable.errors import DurableError, WorkflowNotFoundError
from asgi_durable.middleware.asgi import Headers, Message, Scope, Send, header_values
from asgi_durable.middleware.responses.headers import CONTENT_LENGTH, REPLAYED_HEADER
from asgi_durable.middleware.responses.replay import StoredResponse
from asgi_durable.middleware.responses.server_sent_events import (
    StreamIds,
    is_event_stream,
    is_offset,
)
from asgi_durable.middleware.responses.stream_sender import (
    StreamCutError,
    StreamSender,
    decode_start,
)
from asgi_durable.request_errors import RequestInProgressError, ResponseDamagedError

__all__ = ["is_catch_up", "send_catch_up", "stream_end_headers"]

BEGINNING, TAIL = b"-1", b"now"
# A read begins again if the stream is replaced meanwhile; so often at most.
MAX_READS = 5
_CLOSED = (b"stream-closed", b"true")


@dataclass(slots=True)
class _Part:
    """The part of a stream that one read returns.

    Attributes:
        start: The response's start.
        body: The bytes behind the offset, with the ids that are added to events.
        position: The offset at which the next read begins.
        is_tail: True if no more of the stream is recorded now.
    """

    start: Message
    body: bytearray
    position: int
    is_tail: bool


def stream_end_headers(stored: StoredResponse) -> Headers:
    """Return the headers of a stream that is sent to its end; none if it has no end yet."""
    if stored.stream_end is None:
        return []
    ids = StreamIds(stored.created_at_us)
    return [(b"stream-next-offset", ids.sortable_id_at(stored.stream_end)), _CLOSED]


def is_catch_up(scope: Scope) -> bool:
    """Return whether a request has an offset in its query."""
    return "offset" in _query(scope)


async def send_catch_up(
    scope: Scope, send: Send, streams: Streams, stored: StoredResponse, added_headers: Headers
) -> bool:
    """Send the part of a stream behind the query's offset; return False if there is no stream.

    A response with ``Content-Encoding`` counts as none: its parts could not be decoded.

    Raises:
        DurableError: The offset is malformed, or the bytes in front of it were replaced.
        ResponseDamagedError: The recorded stream is damaged.
        WorkflowNotFoundError: The stream has just expired.
        EncryptionKeyMissingError: The stream is encrypted with a key that this process lacks.
        StorageError: The storage failed.
    """
    query = _query(scope)
    offset = query["offset"][0].encode("latin-1", "replace")
    try:
        part = await _read(streams, stored, query, offset)
    except StreamLostError as error:
        raise WorkflowNotFoundError(stored.workflow_id) from error
    except StreamDamagedError as error:
        raise ResponseDamagedError.of(error, stored.workflow_id) from error
    if part is None:
        return False
    await _send(scope, send, part, _headers(part, stored, offset) + added_headers)
    return True


async def _read(
    streams: Streams, stored: StoredResponse, query: dict[str, list[str]], offset: bytes
) -> _Part | None:
    """Return the part behind an offset, ``None`` if there is no stream to read in parts."""
    for _ in range(MAX_READS):
        record = await streams.start_of(stored.workflow_id)
        if record is None:
            return None
        start = decode_start(record.data)
        if header_values(start["headers"], b"content-encoding"):
            return None
        _check(query, offset)
        try:
            return await _read_version(streams, stored, start, record.end_offset, offset)
        except StreamCutError:
            if offset != BEGINNING:
                raise _replaced() from None
            # The stream was replaced after its start was read. The client has no bytes of it.
    msg = "the response is being replaced again and again; try again"
    raise RequestInProgressError(msg)


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _check(query: dict[str, list[str]], offset: bytes) -> None:
    is_known = offset in (BEGINNING, TAIL) or is_offset(offset)
    if len(query["offset"]) != 1 or not is_known:
        raise _malformed()
    if "live" in query:
        # A client that expects a live read would repeat a catch-up read without a pause.
        msg = "live reads are not served; read without an offset to follow the stream"
        raise DurableError(msg, code="LIVE_NOT_SERVED", status_code=400)


def _malformed() -> DurableError:
    msg = "the offset must be -1, now, or the Stream-Next-Offset of an earlier read"
    return DurableError(msg, code="OFFSET_MALFORMED", status_code=400)


def _replaced() -> DurableError:
    msg = "the bytes in front of this offset were replaced; begin again with offset=-1"
    return DurableError(msg, code="OFFSET_GONE", status_code=410)


async def _read_version(
    streams: Streams, stored: StoredResponse, start: Message, start_offset: int, offset: bytes
) -> _Part:
    """Read about a page behind an offset, of the version of the stream that has this start.

    Raises:
        DurableError: The client's bytes were replaced, and the stream cannot tell it so.
        StreamCutError: The same, and it happened during the read.
        StreamLostError: The stream has expired.
    """
    body = bytearray()

    async def collect(message: Message) -> None:
        body.extend(message.get("body", b""))

    end = stored.stream_end
    ids = StreamIds(stored.created_at_us)
    sender = StreamSender(collect, ids, offset if is_offset(offset) else None)
    await sender.begin(start, start_offset, [])
    if offset == TAIL:
        tail = await streams.tail_of(stored.workflow_id, sender.position) if end is None else end
        return _Part(start, body, tail, is_tail=True)
    if is_offset(offset) and not is_event_stream(start["headers"]):
        position = ids.offset_of(offset)
        if position is None:
            raise _replaced()
        # If it is in front of the start, the read returns the start, which is a cut.
        sender.position = position
    if end is not None and sender.position > end:
        raise _malformed()
    chunks, is_tail = await streams.read_on(stored.workflow_id, sender.position, end)
    for chunk in chunks:
        await sender.send_chunk(chunk)
    return _Part(start, body, sender.position, is_tail)


def _headers(part: _Part, stored: StoredResponse, offset: bytes) -> Headers:
    position = StreamIds(stored.created_at_us).sortable_id_at(part.position)
    is_closed = part.is_tail and stored.stream_end is not None
    headers = [
        *((name, value) for name, value in part.start["headers"] if name == b"content-type"),
        (CONTENT_LENGTH, b"%d" % len(part.body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"stream-next-offset", position),
    ]
    if part.is_tail:
        headers.append((b"stream-up-to-date", b"true"))
    if is_closed:
        headers.append(_CLOSED)
    if offset != TAIL:
        # The bytes between two offsets never change, but the end of the stream may come.
        headers.append((b"etag", b'"%s:%s%s"' % (offset, position, b":end" if is_closed else b"")))
    return [*headers, (REPLAYED_HEADER, b"true")]


async def _send(scope: Scope, send: Send, part: _Part, headers: Headers) -> None:
    # 201, for example, would be wrong: a read of the response creates nothing.
    status = 200 if 200 <= part.start["status"] < 300 else part.start["status"]
    body = bytes(part.body) if scope["method"] != "HEAD" else b""
    wanted = b",".join(header_values(scope["headers"], b"if-none-match")).split(b",")
    if {tag.strip() for tag in wanted} & set(header_values(headers, b"etag")):
        status, body = 304, b""
        headers = [(name, value) for name, value in headers if name != CONTENT_LENGTH]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
