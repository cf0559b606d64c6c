"""Sends a recorded stream to one client: each byte once, and never a mix of two versions."""

from __future__ import annotations

from asgi_durable.engine.requests.response_streams import StreamDamagedError
from asgi_durable.middleware.asgi import Headers, Message, Send
from asgi_durable.middleware.responses.headers import add_headers, decode_headers, encode_headers
from asgi_durable.middleware.responses.server_sent_events import StreamIds, is_event_stream
from asgi_durable.storage.records import ChunkRecord

__all__ = ["StreamCutError", "StreamSender", "decode_start", "encode_start"]


class StreamCutError(Exception):
    """The client has bytes that were deleted since, and the stream cannot tell it so."""


class StreamSender:
    """Sends the chunks of a stream, in order, from where the client already has it.

    Invariant: the bytes at an offset never change, unless they are deleted; then the offset is
    not used again. So the last offset that a client got says which bytes it has, and a cut in
    front of that offset concerns this client.

    Args:
        send: Sends to the client.
        ids: The ids of the stream's events.
        last_event_id: The id of the last event that the client has, ``None`` if it has none.

    Attributes:
        has_begun: True once the client has seen a part of the response.
        position: The offset up to which the client has the stream.
    """

    def __init__(self, send: Send, ids: StreamIds, last_event_id: bytes | None) -> None:
        self._send = send
        self._ids = ids
        self._last_event_id = last_event_id
        self._is_event_stream = False
        self.has_begun = False
        self.position = 0

    async def begin(self, start: Message, offset: int, added_headers: Headers) -> None:
        """Send the response's start, with the library's headers.

        Args:
            start: The message of the app, or the recorded one.
            offset: The offset at which the start is recorded.
            added_headers: The library's headers.
        """
        self.has_begun = True
        self.position = offset
        self._is_event_stream = is_event_stream(start["headers"])
        await self._send({**start, "headers": add_headers(start["headers"], added_headers)})
        if self._is_event_stream and self._last_event_id is not None:
            known = self._ids.offset_of(self._last_event_id)
            if known is None or known < offset:
                # The client's events are of an earlier version, or of no stream that is known.
                await self.send_bytes(self._ids.rollback_event(offset, b""))
            else:
                self.position = known

    async def send_chunk(self, chunk: ChunkRecord) -> None:
        """Send the part of a chunk that the client does not have, or a cut that concerns it.

        Raises:
            StreamCutError: The client has bytes that are cut, and only events can tell it so.
        """
        position, self.position = self.position, max(self.position, chunk.end_offset)
        if chunk.cut_to is None:
            await self._send_rest(chunk, position)
        elif chunk.cut_to < position < chunk.end_offset:
            if chunk.cut_to < 0 or not self._is_event_stream:
                raise StreamCutError
            await self.send_bytes(self._ids.rollback_event(chunk.end_offset, chunk.data))

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes unchanged."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """End the response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_rest(self, chunk: ChunkRecord, position: int) -> None:
        begin = chunk.end_offset - len(chunk.data)
        data = chunk.data[max(0, position - begin) :]
        if data:
            if self._is_event_stream:
                data = self._ids.add_ids(data, chunk.end_offset)
            await self.send_bytes(data)


def encode_start(start: Message, *, keeps_cookies: bool) -> bytes:
    """Return the bytes that record a response's start: its status and its headers."""
    headers = encode_headers(start["headers"], keeps_cookies=keeps_cookies)
    return b"%d " % start["status"] + headers


def decode_start(data: bytes) -> Message:
    """Return the start of a response as a message, with its recorded headers only.

    Raises:
        StreamDamagedError: The data is not from :func:`encode_start`.
    """
    number, _, encoded = data.partition(b" ")
    try:
        status, headers = int(number), decode_headers(encoded)
    except (ValueError, TypeError, AttributeError) as error:
        msg = "its start cannot be read"
        raise StreamDamagedError(msg) from error
    return {"type": "http.response.start", "status": status, "headers": headers}
