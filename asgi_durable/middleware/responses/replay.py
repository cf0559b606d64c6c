"""Answering a request again that is finished, or that is recorded as a stream."""

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


async def send_stored_response(
    send: Send,
    response: ResponseRecord,
    marks: Headers,
    *,
    policy: IdempotencyPolicy | None = None,
) -> None:
    """Send the response of a finished request again, byte for byte.

    Args:
        send: Sends the messages.
        response: The recorded response.
        marks: Headers to add.
        policy: The policy of the request, if it has a key.

    Raises:
        ResponseDamagedError: The response cannot be read; nothing is sent.
    """
    marks = [*marks, (REPLAYED_HEADER, b"true")]
    status, kept = _read(response)
    headers = without_length(kept)
    body = response.body
    if body is None:
        error = ResponseNotKeptError("the request was carried out; its answer was not kept")
        locations = header_values(headers, b"location")
        members: dict[str, Any] = {
            "original_status": status,
            "location": locations[0].decode("latin-1") if locations else None,
        }
        if policy is not None:
            policy.with_own_status(error)
        status, headers, body = problem_response(error, members=members)
        headers += policy.links if policy is not None else []
    elif status not in _WITHOUT_BODY and len(headers) < len(kept):
        # The first response had one.
        headers.append((CONTENT_LENGTH, b"%d" % len(body)))
    await send(
        {"type": "http.response.start", "status": status, "headers": add_headers(headers, marks)}
    )
    await send({"type": "http.response.body", "body": body})


def _read(response: ResponseRecord) -> tuple[int, Headers]:
    """Return the status and the headers of a recorded response."""
    status = response.status_code
    try:
        headers = decode_headers(response.headers)
        if not isinstance(status, int) or not 100 <= status <= 999:
            msg = f"its status is {status!r}"
            raise ValueError(msg)
    except ValueError as error:
        raise ResponseDamagedError.of(error, response.workflow_id) from error
    return status, headers


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response that is recorded as a stream.

    Attributes:
        created_at_us: When its request was claimed.
        response: ``None`` while it is still being recorded.
    """

    workflow_id: str
    created_at_us: int
    response: ResponseRecord | None

    @property
    def end(self) -> int | None:
        """Where the stream ends, if the whole of it is recorded."""
        return self.response.stream_end if self.response is not None else None

    @property
    def is_whole(self) -> bool:
        """True if the whole of it is recorded."""
        return self.end is not None


async def send_stream(
    connection: Connection, streams: Streams, answer: StoredResponse, marks: Headers
) -> bool:
    """Send a stream after the part that the client has seen; return False if there is none.

    New chunks are sent as soon as they are recorded, until the client disconnects: the stream may
    have no end. If the recording ends before the stream is complete, the response ends unfinished,
    and the server closes the connection.

    Raises:
        StorageError: The storage failed before anything was sent.
        EncryptionKeyMissingError: It is encrypted with a key that this process does not have.
        ResponseDamagedError: A recorded chunk that was read by then is damaged.
    """
    workflow_id = answer.workflow_id
    try:
        opened = await _open(streams, answer, [*marks, (REPLAYED_HEADER, b"true")])
    except StreamDamagedError as error:
        raise ResponseDamagedError.of(error, workflow_id) from error
    if opened is None:
        return False
    message, offset, page = opened
    scope = connection.scope
    sender = StreamSender(connection.send, StreamIds(answer.created_at_us), last_event_id(scope))
    await sender.begin(message, offset)
    try:
        if scope["method"] == "HEAD":
            pass
        elif answer.end is not None:
            await _send_pieces(sender, streams.replay(workflow_id, page, answer.end))
        else:
            async with _noticing_leaving(connection) as has_gone:
                pieces = streams.follow(workflow_id, sender.position, has_gone)
                await _send_pieces(sender, pieces)
                if has_gone():
                    return True
    except (EncryptionKeyMissingError, StreamDamagedError) as error:
        logger.error("The stream of request %s ends unfinished, damaged: %s", workflow_id, error)
        return True
    except (StreamLostError, StreamCutError, StorageError) as error:
        logger.info("The stream of request %s ends unfinished: %r", workflow_id, error)
        return True
    await sender.end()
    return True


async def _send_pieces(sender: StreamSender, pieces: AsyncGenerator[ChunkRecord, None]) -> None:
    async with aclosing(pieces):
        async for piece in pieces:
            await sender.take(piece)


@asynccontextmanager
async def _noticing_leaving(connection: Connection) -> AsyncIterator[Callable[[], bool]]:
    """Give a function that returns True once the client is known to have disconnected.

    Some servers raise nothing about that in ``send()``, and stop only after their last request.
    """

    async def until_gone() -> None:
        receive = connection.receive if connection.ahead is None else connection.ahead.read_ahead
        while (await receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.get_running_loop().create_task(until_gone())
    try:
        # A middleware that raises in `receive()` says nothing about the client.
        yield lambda: watch.done() and not watch.cancelled() and watch.exception() is None
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _open(
    streams: Streams, answer: StoredResponse, marks: Headers
) -> tuple[Message, int, list[ChunkRecord]] | None:
    """Return a stream's start, its offset, and the first chunks of a complete stream.

    They are read before anything is sent, as an error can be sent only until then.

    Returns:
        ``None`` if there is no stream.

    Raises:
        StreamDamagedError: The stream is damaged.
    """
    workflow_id, end, page = answer.workflow_id, answer.end, list[ChunkRecord]()
    start = await streams.start_of(workflow_id)
    try:
        if start is not None and end is not None:
            page = await streams.page_of(workflow_id, start.end_offset, end)
        elif end is not None:
            raise await streams.why_missing(workflow_id, end)
    except StreamLostError:
        return None
    if start is None:
        return None
    return decode_start(start.data, marks), start.end_offset, page
