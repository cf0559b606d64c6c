"""Sends recorded responses again: stored ones, and streams that may still be recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from asgi_durable.engine.requests.response_streams import (
    StreamDamagedError,
    StreamLostError,
    Streams,
)
from asgi_durable.errors import EncryptionKeyMissingError, StorageError
from asgi_durable.middleware.asgi import Headers, Message, Send, header_values
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.problem_details import problem_response
from asgi_durable.middleware.responses.headers import (
    CONTENT_LENGTH,
    REPLAYED_HEADER,
    add_headers,
    decode_headers,
    without_length,
)
from asgi_durable.middleware.responses.server_sent_events import StreamIds, last_event_id
from asgi_durable.middleware.responses.stream_sender import (
    StreamCutError,
    StreamSender,
    decode_start,
)
from asgi_durable.request_errors import ResponseDamagedError, ResponseNotKeptError
from asgi_durable.storage.records import ChunkRecord, ResponseRecord

__all__ = ["StoredResponse", "send_stored_response", "send_stream"]

logger = logging.getLogger(__name__)

_WITHOUT_BODY = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The recorded response to a keyed request.

    Attributes:
        workflow_id: The request's id.
        created_at_us: The time when the request was claimed, in microseconds.
        response: ``None`` while the response is still recorded as a stream.
    """

    workflow_id: str
    created_at_us: int
    response: ResponseRecord | None

    @property
    def stream_end(self) -> int | None:
        """The offset at which the stream ends, if it is complete."""
        return self.response.stream_end if self.response is not None else None


async def send_stored_response(
    send: Send,
    response: ResponseRecord,
    added_headers: Headers,
    *,
    policy: IdempotencyPolicy | None = None,
) -> None:
    """Send the response to a finished request again, byte for byte.

    Args:
        send: Sends to the client.
        response: The response.
        added_headers: The library's headers.
        policy: The request's, if it has a key.

    Raises:
        ResponseDamagedError: The response cannot be read; nothing was sent.
    """
    added_headers = [*added_headers, (REPLAYED_HEADER, b"true")]
    status, headers = _read(response)
    body = response.body
    if body is None:
        error = ResponseNotKeptError("the request was carried out; its response was not stored")
        locations = header_values(headers, b"location")
        members: dict[str, Any] = {
            "original_status": status,
            "location": locations[0].decode("latin-1") if locations else None,
        }
        if policy is not None:
            policy.with_own_status(error)
        status, headers, body = problem_response(error, members=members)
        headers += policy.links if policy is not None else []
    elif status in _WITHOUT_BODY:
        headers = without_length(headers)
    elif CONTENT_LENGTH in dict(headers):
        # The length that the app stated may be wrong for the body that is stored.
        added_headers.insert(0, (CONTENT_LENGTH, b"%d" % len(body)))
    headers = add_headers(headers, added_headers)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_stream(
    connection: Connection, streams: Streams, stored: StoredResponse, added_headers: Headers
) -> bool:
    """Send a stream from where the client already has it; return False if there is no stream.

    Chunks that are not recorded yet are sent as soon as they are, until the client disconnects:
    the stream may have no end. If the recording stops before its end, the response ends
    unfinished, and servers close the connection.

    Raises:
        StorageError: The storage failed before anything was sent.
        EncryptionKeyMissingError: The stream is encrypted with a key that this process lacks.
        ResponseDamagedError: The stream's start, or its first page, is damaged.
    """
    workflow_id, end = stored.workflow_id, stored.stream_end
    try:
        opened = await _open(streams, stored)
    except StreamDamagedError as error:
        raise ResponseDamagedError.of(error, workflow_id) from error
    if opened is None:
        return False
    message, offset, page = opened
    scope = connection.scope
    sender = StreamSender(connection.send, StreamIds(stored.created_at_us), last_event_id(scope))
    await sender.begin(message, offset, [*added_headers, (REPLAYED_HEADER, b"true")])
    try:
        if scope["method"] == "HEAD":
            pass
        elif end is not None:
            await _send_chunks(sender, streams.replay(workflow_id, page, end))
        else:
            async with _watching_for_disconnect(connection) as is_disconnected:
                chunks = streams.follow(workflow_id, sender.position, is_disconnected)
                await _send_chunks(sender, chunks)
                if is_disconnected():
                    return True
    except (EncryptionKeyMissingError, StreamDamagedError) as error:
        logger.error("The stream of request %s ends unfinished, damaged: %s", workflow_id, error)
        return True
    except (StreamLostError, StreamCutError, StorageError) as error:
        logger.info("The stream of request %s ends unfinished: %r", workflow_id, error)
        return True
    await sender.end()
    return True


def _read(response: ResponseRecord) -> tuple[int, Headers]:
    """Return the status and the headers of a stored response."""
    status = response.status_code
    try:
        headers = decode_headers(response.headers)
        if not isinstance(status, int) or not 100 <= status <= 999:
            msg = f"its status is {status!r}"
            raise ValueError(msg)
    except ValueError as error:
        raise ResponseDamagedError.of(error, response.workflow_id) from error
    return status, headers


async def _open(
    streams: Streams, stored: StoredResponse
) -> tuple[Message, int, list[ChunkRecord]] | None:
    """Return a stream's start, its offset, and the first chunks of a complete stream.

    They are read before anything is sent, so that a damaged stream still gets an error response.

    Returns:
        ``None`` if there is no stream.

    Raises:
        StreamDamagedError: One of them is damaged.
    """
    workflow_id, end, page = stored.workflow_id, stored.stream_end, list[ChunkRecord]()
    start = await streams.start_of(workflow_id)
    try:
        if start is not None and end is not None:
            page = await streams.page_of(workflow_id, start.end_offset, end)
        elif end is not None:
            raise await streams.why_missing(workflow_id, end)
    except StreamLostError:
        return None
    return None if start is None else (decode_start(start.data), start.end_offset, page)


async def _send_chunks(sender: StreamSender, chunks: AsyncGenerator[ChunkRecord, None]) -> None:
    async with aclosing(chunks):
        async for chunk in chunks:
            await sender.send_chunk(chunk)


@asynccontextmanager
async def _watching_for_disconnect(connection: Connection) -> AsyncIterator[Callable[[], bool]]:
    """Yield a function that returns True once the client is known to have disconnected.

    With some servers ``send()`` does not raise then, and they end the call only when they stop.
    """

    async def wait_for_disconnect() -> None:
        receive = connection.receive if connection.ahead is None else connection.ahead.read_ahead
        while (await receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.get_running_loop().create_task(wait_for_disconnect())
    try:
        # An exception in `receive()` comes from a middleware, and does not mean a disconnect.
        yield lambda: watch.done() and not watch.cancelled() and watch.exception() is None
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
