"""Records a response as a stream: each chunk is durable before it is sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable

from asgi_durable.engine.requests.response_streams import StreamDamagedError, StreamLog, fits
from asgi_durable.middleware.asgi import Headers, Message, Send, header_values
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.responses.headers import (
    CONTENT_LENGTH,
    add_headers,
    without_length,
)
from asgi_durable.middleware.responses.server_sent_events import (
    StreamIds,
    end_of_events,
    is_event_stream,
    without_comments,
)
from asgi_durable.middleware.responses.stream_sender import (
    StreamCutError,
    StreamSender,
    decode_start,
    encode_start,
)
from asgi_durable.storage.records import CUT_ALL, CUT_FOR_GOOD, ChunkRecord

__all__ = ["RecordedStream"]

# How much may wait to be recorded, before the app has to wait.
MAX_WAITING_BYTES = 64 * 1024


class RecordedStream:
    """The response of one execution, compared with earlier recorded chunks, and recorded.

    The bytes that wait when a commit is done go into the next one together. Of an event stream only
    whole events are recorded and sent: no client ever has a part of an event that is then cut.

    Args:
        log: The chunks of the request.
        send: Sends the messages.
        policy: The policy of the request. A stream that becomes longer than its ``max_stream``,
            together with the cut chunks, passes through from there on, and is not stored.
        seen: The id of the last event that the client has seen.

    Attributes:
        has_sent: True once the client has seen a part of the response.
        is_kept: True unless the stream is too long.
    """

    def __init__(
        self,
        log: StreamLog,
        send: Send,
        policy: IdempotencyPolicy,
        *,
        seen: bytes | None,
    ) -> None:
        self._log = log
        self._send = send
        self._seen = seen
        self._ids = StreamIds(log.created_at_us)
        self._sender = StreamSender(send, self._ids, seen)
        self._policy = policy
        self._is_event_stream = False
        # Recorded before and still to be met; and whether that is all.
        self._recorded: deque[ChunkRecord] = deque()
        self._is_past_log = False
        self._position = 0
        self._last_id = b""
        self._start = b""
        # Events that are not whole yet, and what waits to be recorded.
        self._begun = bytearray()
        self._waiting = bytearray()
        self._is_whole = False
        self._task: asyncio.Task[None] | None = None
        self.is_kept = True

    @property
    def has_sent(self) -> bool:
        """True once the client has seen a part of the response."""
        return self._sender.has_begun

    @property
    def headers(self) -> bytes:
        """The encoded headers to store."""
        return self._start.partition(b" ")[2]

    @property
    def end_offset(self) -> int:
        """Where it ends, once it is finished."""
        return self._position

    async def begin(self, start: Message, marks: Headers, recorded: list[ChunkRecord]) -> None:
        """Record the response's start, and send it.

        Args:
            start: The app's message.
            marks: The library's headers.
            recorded: The first page of chunks that earlier executions have recorded.

        Raises:
            RunStopped: It could not be recorded.
        """
        headers = start.get("headers", ())
        self._log.may_compress = not header_values(headers, b"content-encoding")
        self._is_event_stream = is_event_stream(headers)
        if self._is_event_stream:
            # Ids are added.
            start = {**start, "headers": without_length(headers)}
        self._start = encode_start(start, keeps_cookies=self._policy.keep_cookies)
        message: Message = {**start, "headers": add_headers(start.get("headers", ()), marks)}
        first = recorded[0] if recorded else None
        if first is None:
            # Nobody can have any of it, unless the key has expired since.
            if self._seen is not None and not self._ids.is_of_another(self._seen):
                self._sender = StreamSender(self._send, self._ids, None)
            await self._record_start(0)
        elif first.cut_to == CUT_FOR_GOOD:
            self.is_kept = False
            self._position = first.end_offset
        elif _may_stand_for(first, start):
            if first.data != self._start:
                self._start = first.data
                message = decode_start(first.data, marks)
            self._recorded.extend(list(recorded)[1:])
            self._position = first.end_offset
        else:
            self._position = first.end_offset
            await self._record_start(await self._top() + 1)
        await self._passed(self._sender.begin(message, self._position))

    async def write(self, data: bytes) -> None:
        """Add the next bytes of the body; they are sent once they are durable.

        Raises:
            RunStopped: The bytes before them could not be recorded.
        """
        await self._raise_failure()
        if not self.is_kept:
            await self._passed(self._sender.send(data))
            return
        known = len(self._begun)
        self._begun += data
        size = self._position + len(self._waiting) + len(self._begun)
        if size > self._policy.max_stream:
            await self._give_up()
            return
        end = end_of_events(self._begun, known) if self._is_event_stream else len(self._begun)
        whole = bytes(self._begun[:end])
        del self._begun[:end]
        kept = without_comments(whole) if self._is_event_stream else whole
        self._waiting += kept
        self._go_on()
        if whole and not kept and self._task is None:
            # It keeps the connection alive, and says nothing.
            await self._passed(self._sender.send(whole))
        task = self._task
        if task is not None and len(self._waiting) > MAX_WAITING_BYTES:
            await asyncio.wait([task])

    async def finish(self) -> None:
        """Record all that is left, and send it; nothing follows.

        Raises:
            RunStopped: It could not be recorded.
        """
        await self._raise_failure()
        if self.is_kept:
            self._waiting += self._begun
            self._begun.clear()
            self._is_whole = True
            await self._join()
            await self._pump()

    async def end(self) -> None:
        """Send the end of the body, once the response is committed."""
        await self._passed(self._sender.end())

    async def close(self) -> None:
        """Record the rest after the app has ended, unless the run must not continue."""
        task = self._task
        if task is None or not self._log.is_stopped:
            await self._join()
            return
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()

    def _go_on(self) -> None:
        if self._task is None or self._task.done():
            self._task = None
            if self._waiting:
                self._task = asyncio.get_running_loop().create_task(self._pump())

    async def _raise_failure(self) -> None:
        if self._task is not None and self._task.done():
            await self._join()

    async def _join(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await task

    async def _pump(self) -> None:
        """Record and send what waits, until more of it is needed."""
        while self._waiting or (self._is_whole and await self._next() is not None):
            if not await self._advance():
                return

    async def _advance(self) -> bool:
        """Record or confirm the next chunk, and send it; return False if it is not complete."""
        recorded = await self._next()
        if recorded is None:
            await self._append()
            return True
        if not fits(recorded, self._position):
            # Damaged: what was recorded up to here stands.
            await self._roll_back()
            return True
        if recorded.cut_to is None:
            length = len(recorded.data)
            if not recorded.data.startswith(self._waiting[:length]):
                await self._roll_back()
                return True
            if len(self._waiting) < length:
                if self._is_whole:
                    await self._roll_back()
                return self._is_whole
            del self._waiting[:length]
            if self._is_event_stream:
                last_id = self._ids.last_of(recorded.data, recorded.end_offset)
                self._last_id = self._last_id if last_id is None else last_id
        self._recorded.popleft()
        self._position = recorded.end_offset
        await self._passed(self._sender.take(recorded))
        return True

    async def _next(self) -> ChunkRecord | None:
        """Return the next chunk that is recorded already, ``None`` if there are no more."""
        if not self._recorded and not self._is_past_log:
            self._recorded.extend(await self._log.read(self._position))
            self._is_past_log = not self._recorded
        return self._recorded[0] if self._recorded else None

    async def _append(self) -> None:
        data = bytes(self._waiting)
        self._waiting.clear()
        # Events stay together: a chunk has whole events.
        size = len(data) if self._is_event_stream else MAX_WAITING_BYTES
        chunks = [data[place : place + size] for place in range(0, len(data), size)]
        pieces = []
        for chunk in chunks:
            self._position += len(chunk)
            pieces.append(self._piece(self._position, chunk))
        await self._log.record(*pieces)
        for piece in pieces:
            await self._passed(self._sender.take(piece))

    async def _roll_back(self) -> None:
        """Cut the chunks that this execution does not repeat, from the first one that differs.

        Invariant: at the end of a chunk, and recorded in one commit. After it no reader finds a cut
        chunk, or a part of one, together with the chunks of another execution.
        """
        cut = self._piece(await self._top() + 1, self._last_id, cut_to=self._position)
        await self._log.record(cut)
        self._leave_log(cut.end_offset)
        await self._passed(self._sender.take(cut))

    async def _give_up(self) -> None:
        """Keep nothing of the stream, as it is too long; what is left of it passes through."""
        await self._join()
        await self._log.record(self._piece(await self._top() + 1, b"", cut_to=CUT_FOR_GOOD))
        self.is_kept = False
        if self._sender.position > self._position:
            # It had more of it than this execution has come to; the retry tells it.
            raise StreamCutError
        rest = bytes(self._waiting + self._begun)
        self._waiting.clear()
        self._begun.clear()
        await self._passed(self._sender.send(rest))

    async def _passed(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except OSError:
            # Servers raise so once the client has disconnected. It does not stop the recording.
            if not self.is_kept or self._policy.on_disconnect == "cancel":
                raise

    async def _record_start(self, offset: int) -> None:
        await self._log.record(self._piece(offset, self._start, cut_to=CUT_ALL))
        self._leave_log(offset)

    def _leave_log(self, offset: int) -> None:
        self._recorded.clear()
        self._is_past_log = True
        self._position = offset

    async def _top(self) -> int:
        """Return the last offset that was ever given out."""
        top = self._position
        while not self._is_past_log and (page := await self._log.read(top)):
            top = page[-1].end_offset
        return top

    def _piece(self, end_offset: int, data: bytes, *, cut_to: int | None = None) -> ChunkRecord:
        return ChunkRecord(
            workflow_id=self._log.workflow_id, end_offset=end_offset, cut_to=cut_to, data=data
        )


def _may_stand_for(first: ChunkRecord, start: Message) -> bool:
    """Tell whether a recorded start may stand for another one: of the same kind of body."""
    try:
        recorded = decode_start(first.data, []) if first.cut_to == CUT_ALL else None
    except StreamDamagedError:
        recorded = None
    if recorded is None:
        # Damaged: it is recorded anew, and all that follows.
        return False
    headers, recorded_headers = start.get("headers", ()), recorded["headers"]
    lengths = header_values(recorded_headers, CONTENT_LENGTH)
    if lengths and lengths != header_values(headers, CONTENT_LENGTH):
        return False
    return bool(recorded["status"] == start["status"]) and all(
        header_values(headers, name) == header_values(recorded_headers, name)
        for name in (b"content-type", b"content-encoding")
    )
