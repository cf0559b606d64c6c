"""Records a response as a stream: each chunk is durable before it is sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable

from asgi_durable.engine.requests.response_streams import StreamDamagedError, StreamLog, fits
from asgi_durable.middleware.asgi import Headers, Message, Send, header_values
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.responses.headers import CONTENT_LENGTH, without_length
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

__all__ = ["StreamRecorder"]

# The app has to wait while more bytes than this are not recorded.
MAX_UNRECORDED_BYTES = 64 * 1024


class StreamRecorder:
    """Records the response of one attempt, which begins like those of the attempts before.

    The response is compared with the chunks that earlier attempts have recorded. As long as it is
    equal, these chunks are sent; from the first difference on they are cut, and its own chunks
    are recorded. All bytes that arrive during a commit go into the next commit together. Of an
    event stream only complete events are recorded and sent, so a cut never divides an event.

    Args:
        log: The request's recorded stream.
        send: Sends to the client.
        policy: The request's. If the stream becomes longer than ``max_stream``, deleted chunks
            included, its recording is deleted, and the rest is sent without being recorded.
        last_event_id: The id of the last event that the client has.

    Attributes:
        has_sent: True once the client has a part of the response.
        is_recorded: False once the stream was too long.
    """

    def __init__(
        self,
        log: StreamLog,
        send: Send,
        policy: IdempotencyPolicy,
        *,
        last_event_id: bytes | None,
    ) -> None:
        self._log = log
        self._send = send
        self._last_event_id = last_event_id
        self._ids = StreamIds(log.created_at_us)
        self._sender = StreamSender(send, self._ids, last_event_id)
        self._policy = policy
        self._is_event_stream = False
        # Chunks of earlier attempts that this one has yet to repeat; and whether they are all.
        self._recorded: deque[ChunkRecord] = deque()
        self._is_past_log = False
        # This attempt is equal to the log, or has recorded its own chunks, up to this offset.
        self._position = 0
        self._last_recorded_id = b""
        self._start = b""
        self._incomplete_events = bytearray()
        self._unrecorded = bytearray()
        self._is_finished = False
        self._task: asyncio.Task[None] | None = None
        self.is_recorded = True

    @property
    def has_sent(self) -> bool:
        """True once the client has a part of the response."""
        return self._sender.has_begun

    @property
    def headers(self) -> bytes:
        """The encoded headers that are stored."""
        return self._start.partition(b" ")[2]

    @property
    def end_offset(self) -> int:
        """The offset at which the stream ends, once it is finished."""
        return self._position

    async def begin(
        self, start: Message, added_headers: Headers, recorded: list[ChunkRecord]
    ) -> None:
        """Record the response's start, and send it.

        Args:
            start: The app's message.
            added_headers: The library's headers.
            recorded: The first page of the chunks that earlier attempts have recorded.

        Raises:
            RunStopped: The start could not be recorded.
        """
        headers = start["headers"]
        self._log.may_compress = not header_values(headers, b"content-encoding")
        self._is_event_stream = is_event_stream(headers)
        if self._is_event_stream:
            # Added ids make the body longer.
            start = {**start, "headers": without_length(headers)}
        self._start = encode_start(start, keeps_cookies=self._policy.keep_cookies)
        if not recorded:
            self._ignore_event_id()
            await self._record_start(0)
        elif recorded[0].cut_to == CUT_FOR_GOOD:
            self.is_recorded = False
            self._position = recorded[0].end_offset
        else:
            self._position = recorded[0].end_offset
            recorded_start = _equivalent_start(recorded[0], start)
            if recorded_start is None:
                await self._record_start(await self._highest_offset() + 1)
            else:
                self._recorded.extend(recorded[1:])
                if recorded[0].data != self._start:
                    self._start, start = recorded[0].data, recorded_start
        await self._ignoring_disconnect(self._sender.begin(start, self._position, added_headers))

    async def write(self, data: bytes) -> None:
        """Receive the next bytes of the body. They are sent once they are durable.

        Raises:
            RunStopped: Earlier bytes could not be recorded.
        """
        await self._raise_failure()
        if not self.is_recorded:
            await self._ignoring_disconnect(self._sender.send_bytes(data))
            return
        known = len(self._incomplete_events)
        self._incomplete_events += data
        size = self._position + len(self._unrecorded) + len(self._incomplete_events)
        if size > self._policy.max_stream:
            await self._give_up()
            return
        await self._take_complete(known)
        task = self._task
        if task is not None and len(self._unrecorded) > MAX_UNRECORDED_BYTES:
            await asyncio.wait([task])

    async def finish(self) -> None:
        """Record and send all that is left. Nothing follows.

        Raises:
            RunStopped: It could not be recorded.
        """
        await self._raise_failure()
        if self.is_recorded:
            self._unrecorded += self._incomplete_events
            self._incomplete_events.clear()
            self._is_finished = True
            await self._wait_for_task()
            await self._record_all()

    async def end(self) -> None:
        """End the response, once it is committed."""
        await self._ignoring_disconnect(self._sender.end())

    async def close(self) -> None:
        """Record what the app has sent before it ended, unless the run was stopped."""
        task = self._task
        if task is None or not self._log.is_stopped:
            await self._wait_for_task()
            return
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            # Read, so that asyncio does not log it as never retrieved.
            task.exception()

    def _ignore_event_id(self) -> None:
        """Ignore the client's event id: no attempt has recorded events, so it has none.

        If the id is of another stream, an earlier request with this key has expired. The id is
        not ignored then, so that the client drops the events of that request.
        """
        event_id = self._last_event_id
        if event_id is not None and not self._ids.is_from_other_stream(event_id):
            self._sender = StreamSender(self._send, self._ids, None)

    async def _take_complete(self, known: int) -> None:
        """Let the complete events, or all bytes of another body, be recorded."""
        if self._is_event_stream:
            end = end_of_events(self._incomplete_events, known)
            complete = bytes(self._incomplete_events[:end])
            recorded = without_comments(complete)
        else:
            end = len(self._incomplete_events)
            complete = recorded = bytes(self._incomplete_events)
        del self._incomplete_events[:end]
        self._unrecorded += recorded
        self._start_recording()
        if complete and not recorded and self._task is None:
            # Comments that keep the connection alive.
            await self._ignoring_disconnect(self._sender.send_bytes(complete))

    def _start_recording(self) -> None:
        if self._task is None or self._task.done():
            self._task = None
            if self._unrecorded:
                self._task = asyncio.get_running_loop().create_task(self._record_all())

    async def _raise_failure(self) -> None:
        if self._task is not None and self._task.done():
            await self._wait_for_task()

    async def _wait_for_task(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await task

    async def _record_all(self) -> None:
        """Record and send the bytes so far, or as many as can be compared with the log."""
        while self._unrecorded or (self._is_finished and await self._next_recorded() is not None):
            if not await self._advance():
                return

    async def _advance(self) -> bool:
        """Repeat or record the next chunk, and send it; return False if more bytes are needed."""
        recorded = await self._next_recorded()
        if recorded is None:
            await self._append()
            return True
        if not fits(recorded, self._position):
            # Damaged: the chunks in front of it stay.
            await self._roll_back()
            return True
        if recorded.cut_to is None:
            length = len(recorded.data)
            if not recorded.data.startswith(self._unrecorded[:length]):
                await self._roll_back()
                return True
            if len(self._unrecorded) < length:
                if self._is_finished:
                    await self._roll_back()
                return self._is_finished
            del self._unrecorded[:length]
            if self._is_event_stream:
                last_id = self._ids.last_id_in(recorded.data, recorded.end_offset)
                self._last_recorded_id = self._last_recorded_id if last_id is None else last_id
        self._recorded.popleft()
        self._position = recorded.end_offset
        await self._ignoring_disconnect(self._sender.send_chunk(recorded))
        return True

    async def _next_recorded(self) -> ChunkRecord | None:
        """Return the next chunk of earlier attempts, ``None`` if there are no more."""
        if not self._recorded and not self._is_past_log:
            self._recorded.extend(await self._log.read(self._position))
            self._is_past_log = not self._recorded
        return self._recorded[0] if self._recorded else None

    async def _append(self) -> None:
        data = bytes(self._unrecorded)
        self._unrecorded.clear()
        # A chunk of an event stream consists of complete events.
        size = len(data) if self._is_event_stream else MAX_UNRECORDED_BYTES
        chunks = []
        for place in range(0, len(data), size):
            part = data[place : place + size]
            self._position += len(part)
            chunks.append(self._chunk(self._position, part))
        await self._log.record(*chunks)
        for chunk in chunks:
            await self._ignoring_disconnect(self._sender.send_chunk(chunk))

    async def _roll_back(self) -> None:
        """Cut the chunks of earlier attempts from the first one on that differs.

        Invariant: the cut is at the end of a chunk, and one commit deletes the chunks and records
        the cut. So no reader finds deleted chunks followed by chunks of another attempt.
        """
        offset = await self._highest_offset() + 1
        cut = self._chunk(offset, self._last_recorded_id, cut_to=self._position)
        await self._log.record(cut)
        self._leave_log(offset)
        await self._ignoring_disconnect(self._sender.send_chunk(cut))

    async def _give_up(self) -> None:
        """Delete the recording of a stream that is too long; send the rest unrecorded."""
        await self._wait_for_task()
        await self._log.record(
            self._chunk(await self._highest_offset() + 1, b"", cut_to=CUT_FOR_GOOD)
        )
        self.is_recorded = False
        if self._sender.position > self._position:
            # The client already has more than this attempt has repeated. The response fails, and
            # the client's retry gets the stream from its beginning.
            raise StreamCutError
        rest = bytes(self._unrecorded + self._incomplete_events)
        self._unrecorded.clear()
        self._incomplete_events.clear()
        await self._ignoring_disconnect(self._sender.send_bytes(rest))

    async def _ignoring_disconnect(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except OSError:
            # Servers raise it once the client has disconnected. The recording continues.
            if not self.is_recorded or self._policy.on_disconnect == "cancel":
                raise

    async def _record_start(self, offset: int) -> None:
        await self._log.record(self._chunk(offset, self._start, cut_to=CUT_ALL))
        self._leave_log(offset)

    def _leave_log(self, offset: int) -> None:
        """Record from an offset on, and compare no further chunks of earlier attempts."""
        self._recorded.clear()
        self._is_past_log = True
        self._position = offset

    async def _highest_offset(self) -> int:
        """Return the highest offset that was ever used."""
        highest = self._position
        while not self._is_past_log and (page := await self._log.read(highest)):
            highest = page[-1].end_offset
        return highest

    def _chunk(self, end_offset: int, data: bytes, *, cut_to: int | None = None) -> ChunkRecord:
        return ChunkRecord(
            workflow_id=self._log.workflow_id, end_offset=end_offset, cut_to=cut_to, data=data
        )


def _equivalent_start(recorded: ChunkRecord, start: Message) -> Message | None:
    """Return a recorded start if this response may have it: both describe the same kind of body.

    Returns:
        ``None`` also for a damaged start. The response is then recorded again from its start on.
    """
    try:
        former = decode_start(recorded.data) if recorded.cut_to == CUT_ALL else None
    except StreamDamagedError:
        return None
    if former is None or former["status"] != start["status"]:
        return None
    lengths = header_values(former["headers"], CONTENT_LENGTH)
    if lengths and lengths != header_values(start["headers"], CONTENT_LENGTH):
        return None
    is_same_kind = all(
        header_values(start["headers"], name) == header_values(former["headers"], name)
        for name in (b"content-type", b"content-encoding")
    )
    return former if is_same_kind else None
