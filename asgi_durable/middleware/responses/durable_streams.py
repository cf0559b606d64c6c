"""Catch-up reads: what there is of a recorded stream behind an offset, at once.

They are those of the Durable Streams protocol, of which nothing else is served: neither its live
modes nor its JSON arrays.
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
from asgi_durable.middleware.responses.headers import REPLAYED_HEADER
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
from asgi_durable.storage.records import ChunkRecord

__all__ = ["closed_marks", "send_catch_up", "wants_part"]

BEGINNING, TAIL = b"-1", b"now"
# How often a stream is read from its beginning while that is replaced.
MAX_READS = 5
_CLOSED = (b"stream-closed", b"true")
_ENCODING = b"content-encoding"


@dataclass(slots=True)
class _Part:
    """One read of a stream.

    Attributes:
        start: The response's start.
        body: The bytes after the offset, with the ids that are added to events.
        position: Where the next read begins.
        is_tail: True if there is no more of the stream now.
    """

    start: Message
    body: bytearray
    position: int
    is_tail: bool


def closed_marks(answer: StoredResponse) -> Headers:
    """Return the headers of a recorded stream that is sent to its end; none if it has none yet."""
    if answer.response is None or answer.response.stream_end is None:
        return []
    ids = StreamIds(answer.created_at_us)
    return [(b"stream-next-offset", ids.sorted_at(answer.response.stream_end)), _CLOSED]


def wants_part(scope: Scope) -> bool:
    """Tell whether a request has an offset in its query."""
    return "offset" in _query(scope)


async def send_catch_up(
    scope: Scope, send: Send, streams: Streams, answer: StoredResponse, marks: Headers
) -> bool:
    """Send the part of a stream that its query asks for; return False if there is no stream.

    A response with a content encoding cannot be read in parts, and does not count as a stream.

    Raises:
        DurableError: The offset is malformed, or void.
        ResponseDamagedError: The recorded response is damaged.
        WorkflowNotFoundError: The stream has just expired.
        EncryptionKeyMissingError: It is encrypted with a key that this process does not have.
        StorageError: The storage failed.
    """
    query = _query(scope)
    offset = query["offset"][0].encode("latin-1", "replace")
    try:
        part = await _part(streams, answer, query, offset)
    except StreamLostError as error:
        raise WorkflowNotFoundError(answer.workflow_id) from error
    except StreamDamagedError as error:
        raise ResponseDamagedError.of(error, answer.workflow_id) from error
    if part is None:
        return False
    await _send(scope, send, part, _headers(part, answer, offset) + marks)
    return True


async def _part(
    streams: Streams, answer: StoredResponse, query: dict[str, list[str]], offset: bytes
) -> _Part | None:
    """Return what there is behind an offset, ``None`` if there is no stream to read in parts."""
    for _ in range(MAX_READS):
        start = await streams.start_of(answer.workflow_id)
        if start is None or header_values(decode_start(start.data, [])["headers"], _ENCODING):
            return None
        _check(query, offset)
        try:
            return await _read(streams, answer, start, offset)
        except StreamCutError:
            if offset != BEGINNING:
                raise _gone() from None
            # It has nothing of what was replaced between the two reads.
    msg = "the answer is replaced again and again; try again"
    raise RequestInProgressError(msg)


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _check(query: dict[str, list[str]], offset: bytes) -> None:
    is_known = offset in (BEGINNING, TAIL) or is_offset(offset)
    if len(query["offset"]) != 1 or not is_known:
        raise _malformed()
    if "live" in query:
        # Answered at once, a client would ask again and again without a pause.
        msg = "live reads are not served; read without an offset to follow the stream"
        raise DurableError(msg, code="LIVE_NOT_SERVED", status_code=400)


def _malformed() -> DurableError:
    msg = "the offset must be -1, now, or the Stream-Next-Offset of an earlier read"
    return DurableError(msg, code="OFFSET_MALFORMED", status_code=400)


def _gone() -> DurableError:
    msg = "what was read up to this offset was replaced; begin again with offset=-1"
    return DurableError(msg, code="OFFSET_GONE", status_code=410)


async def _read(
    streams: Streams, answer: StoredResponse, start: ChunkRecord, offset: bytes
) -> _Part:
    """Read about a page of a stream after an offset.

    Raises:
        DurableError: The client's part of the stream is void, and the stream cannot say so.
        StreamCutError: The same, since a moment ago.
        StreamLostError: The stream has expired.
    """
    body = bytearray()
    message: Message = {}

    async def keep(sent: Message) -> None:
        if sent["type"] == "http.response.start":
            message.update(sent)
        else:
            body.extend(sent["body"])

    end = answer.response.stream_end if answer.response is not None else None
    ids = StreamIds(answer.created_at_us)
    sender = StreamSender(keep, ids, offset if is_offset(offset) else None)
    await sender.begin(decode_start(start.data, []), start.end_offset)
    if offset == TAIL:
        tail = await streams.tail_of(answer.workflow_id, sender.position) if end is None else end
        return _Part(message, body, tail, is_tail=True)
    if is_offset(offset) and not is_event_stream(message["headers"]):
        position = ids.offset_of(offset)
        if position is None:
            raise _gone()
        # One in front of the start meets the start behind it, which is a cut.
        sender.position = position
    if end is not None and sender.position > end:
        raise _malformed()
    pieces, is_tail = await streams.read_on(answer.workflow_id, sender.position, end)
    for piece in pieces:
        await sender.take(piece)
    return _Part(message, body, sender.position, is_tail)


def _headers(part: _Part, answer: StoredResponse, offset: bytes) -> Headers:
    position = StreamIds(answer.created_at_us).sorted_at(part.position)
    is_closed = part.is_tail and answer.is_whole
    headers = [
        *((name, value) for name, value in part.start["headers"] if name == b"content-type"),
        (b"content-length", b"%d" % len(part.body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"stream-next-offset", position),
    ]
    if part.is_tail:
        headers.append((b"stream-up-to-date", b"true"))
    if is_closed:
        headers.append(_CLOSED)
    if offset != TAIL:
        # The bytes between two offsets never change; only whether more will come does.
        headers.append((b"etag", b'"%s:%s%s"' % (offset, position, b":end" if is_closed else b"")))
    return [*headers, (REPLAYED_HEADER, b"true")]


async def _send(scope: Scope, send: Send, part: _Part, headers: Headers) -> None:
    # A reader of the stream need not know that the request has created something.
    status = 200 if 200 <= part.start["status"] < 300 else part.start["status"]
    body = bytes(part.body) if scope["method"] != "HEAD" else b""
    wanted = b",".join(header_values(scope["headers"], b"if-none-match")).split(b",")
    if {tag.strip() for tag in wanted} & set(header_values(headers, b"etag")):
        status, body = 304, b""
        headers = [(name, value) for name, value in headers if name != b"content-length"]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
