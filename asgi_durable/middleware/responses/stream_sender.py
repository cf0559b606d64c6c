"""Sending a recorded stream to one client: each part of it once, and never two versions."""

from __future__ import annotations

from asgi_durable.engine.requests.response_streams import StreamDamagedError
from asgi_durable.middleware.asgi import Headers, Message, Send
from asgi_durable.middleware.responses.headers import add_headers, decode_headers, encode_headers
from asgi_durable.middleware.responses.server_sent_events import StreamIds, is_event_stream
from asgi_durable.storage.records import ChunkRecord

__all__ = ["StreamCutError", "StreamSender", "decode_start", "encode_start"]


class StreamCutError(Exception):
    """A part that was sent is void, and the stream cannot say so."""


class StreamSender:
    """Sends the chunks of a stream, in order, after the part that its client has already.

    Invariant: an offset means the same bytes for ever, or void ones. So the offset of the last sent
    chunk says what the client has: bytes that are cut before it are revoked.

    Args:
        send: Sends the messages.
        ids: The ids of the stream's events.
        seen: The id of the last event that the client has seen, ``None`` if it has none.

    Attributes:
        has_begun: True once the client has seen a part of the response.
        position: The offset up to which it has the stream.
    """

    def __init__(self, send: Send, ids: StreamIds, seen: bytes | None) -> None:
        self._send = send
        self._ids = ids
        self._seen = seen
        self._is_event_stream = False
        self.has_begun = False
        self.position = 0

    async def begin(self, start: Message, offset: int) -> None:
        """Send the response's start, which is recorded at an offset."""
        self.has_begun = True
        self.position = offset
        self._is_event_stream = is_event_stream(start["headers"])
        await self._send(start)
        if self._is_event_stream and self._seen is not None:
            seen = self._ids.offset_of(self._seen)
            if seen is None or seen < offset:
                # Of another version, or nobody knows of which.
                await self.send(self._ids.rollback(offset, b""))
            else:
                self.position = seen

    async def take(self, piece: ChunkRecord) -> None:
        """Send a chunk, or the part that the client does not have, and a cut that concerns it.

        Raises:
            StreamCutError: The stream has no form for a cut.
        """
        position, self.position = self.position, max(self.position, piece.end_offset)
        if piece.cut_to is None:
            await self._send_rest(piece, position)
        elif piece.cut_to < position < piece.end_offset:
            if piece.cut_to < 0 or not self._is_event_stream:
                raise StreamCutError
            await self.send(self._ids.rollback(piece.end_offset, piece.data))

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Send that this was all."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_rest(self, piece: ChunkRecord, position: int) -> None:
        begin = piece.end_offset - len(piece.data)
        data = piece.data[max(0, position - begin) :]
        if data:
            is_event_stream, end = self._is_event_stream, piece.end_offset
            await self.send(self._ids.added_to(data, end) if is_event_stream else data)


def encode_start(start: Message, *, keeps_cookies: bool) -> bytes:
    """Return the recorded form of a response's start."""
    headers = encode_headers(start.get("headers", ()), keeps_cookies=keeps_cookies)
    return b"%d " % start["status"] + headers


def decode_start(data: bytes, marks: Headers) -> Message:
    """Return a response's start as it is sent again.

    Raises:
        StreamDamagedError: It is not what :func:`encode_start` returns.
    """
    number, _, encoded = data.partition(b" ")
    try:
        status, headers = int(number), decode_headers(encoded)
    except (ValueError, TypeError, AttributeError) as error:
        msg = "its start cannot be read"
        raise StreamDamagedError(msg) from error
    return {
        "type": "http.response.start",
        "status": status,
        "headers": add_headers(headers, marks),
    }
