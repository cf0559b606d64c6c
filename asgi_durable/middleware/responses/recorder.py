"""Records an app's response: it is committed before it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from asgi_durable.engine.requests.claims import ResponseCommit
from asgi_durable.errors import DurableError, DurableUsageError, StorageError
from asgi_durable.middleware.asgi import Headers, Message, Send
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.policies.retry_after import RETRY_AFTER, response_delay, whole_seconds
from asgi_durable.middleware.problem_context import current_problem_context
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.request_bodies.long_body import ChunkedBody
from asgi_durable.middleware.request_bodies.replayed_body import ReplayedBody
from asgi_durable.middleware.responses.headers import IGNORED, add_headers, encode_headers
from asgi_durable.middleware.responses.server_sent_events import is_event_stream
from asgi_durable.middleware.responses.session_changes import SessionChanges
from asgi_durable.middleware.responses.stream_recorder import StreamRecorder
from asgi_durable.request_errors import OutcomeUnknownError
from asgi_durable.storage.records import ChunkRecord

__all__ = ["ResponseRecorder"]

logger = logging.getLogger(__name__)

# They are about the moment or the sender, not about the request.
_NEVER_FINAL = frozenset({401, 403, 407, 408, 421, 425, 429})
# They make the client repeat the request at another path, with the same key. If the response was
# stored under the key, the request there would be refused with 422; so the key is freed, unless
# something was recorded. Routers redirect so if a path lacks its slash.
_REPEATS_REQUEST = frozenset({307, 308})
# Chunks that follow each other without a pause are held so long, as a multiple of the pause.
HELD_PAUSES = 4


class ResponseRecorder:
    """Receives the messages of an app's response to one request.

    The client gets nothing of a response before it is committed, unless the body comes in chunks
    with pauses between them, or for long: these are sent as they come, and the last one after the
    commit. Event streams, and bodies above ``max_response_body``, are sent so too and not stored.
    With ``stream="record"`` all three are recorded chunk by chunk instead.

    Args:
        request: Commits the response.
        send: Sends to the client.
        policy: The request's.
        added_headers: The library's headers. They replace the app's headers of the same names.
        request_body: The request's body. It is read to its end before a response is stored. Its
            ``may_report_disconnect`` is set once a disconnect may stop the app, because its
            response is committed or will not be stored.

    Attributes:
        complete: True once nothing follows the messages that are being sent.
        is_ending: True once the app has sent its whole response.
        is_taken_over: True if another executor owns the request, so that this response is void.
        last_event_id: The id of the last event of the stream that the client has.
        session: The changes of the request's session, if they are stored.
        retry_delay: Seconds until a retry is served, by the policy. It is computed once for each
            attempt, because the client gets it too.
    """

    def __init__(
        self,
        request: ResponseCommit,
        send: Send,
        *,
        policy: IdempotencyPolicy,
        added_headers: Headers,
        request_body: ReplayedBody,
    ) -> None:
        self._request = request
        self._send = send
        self._request_body = request_body
        self._may_report_disconnect = request_body.may_report_disconnect
        self._policy = policy
        self._added_headers = added_headers
        self._start: Message | None = None
        # Names of the app's headers, in lower case.
        self._names: set[bytes] = set()
        self._is_start_sent = False
        # The whole body as long as it is to be stored, else the bytes that are not sent yet.
        self._body = bytearray()
        self._sent_bytes = 0
        self._is_stored = True
        self._held_until: float | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None
        self._stream: StreamRecorder | None = None
        # The first page of the stream that earlier attempts have recorded.
        self._recorded: list[ChunkRecord] = []
        self.last_event_id: bytes | None = None
        self.session: SessionChanges | None = None
        self.retry_delay = 0.0
        self.complete = False
        self.is_ending = False
        self.is_taken_over = False

    @property
    def has_sent(self) -> bool:
        """True once the client has a part of a response."""
        return self._is_start_sent or (self._stream is not None and self._stream.has_sent)

    async def send(self, message: Message) -> None:
        """Receive the app's next message."""
        if self._pause is not None or self._sending is not None:
            await self._end_pause()
        if self.is_taken_over:
            return
        kind = message["type"]
        if kind == "http.response.start":
            await self._begin(message)
        elif kind != "http.response.body" or self._start is None or self.complete:
            await self._send(message)
        else:
            await self._add(self._start, message)

    async def send_error(self, error: DurableError) -> None:
        """Respond with an error of the library, unless the client has a response already."""
        await self._end_pause()
        self.complete = True
        self._may_report_disconnect.set()
        if not self.has_sent:
            self._is_start_sent = True
            headers = [*self._added_headers, *self._policy.links]
            await send_problem(self._send, self._policy.with_own_status(error), headers=headers)

    async def close(self) -> None:
        """End the work in the background: the app has returned or raised."""
        with contextlib.suppress(OSError):
            if self._pause is not None or self._sending is not None:
                await self._end_pause()
            if self._stream is not None:
                await self._stream.close()

    async def _begin(self, message: Message) -> None:
        """Receive the response's start."""
        # The headers may be an iterator, and are read several times.
        start = self._start = {**message, "headers": list(message.get("headers", ()))}
        self._names = {name.lower() for name, _ in start["headers"]}
        has_events = is_event_stream(start["headers"])
        if self._policy.stream == "record":
            if self._request.attempts > 1:
                self._recorded = await self._request.stream.read(-1)
            # Clients may have what earlier attempts have recorded, so this response continues it.
            if (has_events or self._recorded) and self._may_be_recorded(start):
                await self._begin_stream(start)
                return
        if has_events:
            self._is_stored = False
            # Without delay: the first event may take long, or never come.
            await self._send_body(start, more=True)

    async def _add(self, start: Message, message: Message) -> None:
        """Receive a chunk of the body."""
        chunk = message.get("body", b"")
        if self._stream is not None:
            await self._write(self._stream, chunk)
        else:
            self._body += chunk
            if self._is_stored and len(self._body) > self._policy.max_response_body:
                self._is_stored = False
                del self._body[: self._sent_bytes]
                self._sent_bytes = 0
                if self._may_be_recorded(start):
                    await self._begin_stream(start)
        if not message.get("more_body", False):
            self.is_ending = True
            if self._stream is not None:
                await self._stream.finish()
            await self._complete(start)
        elif self._stream is None:
            await self._send_or_hold(start)

    async def _send_or_hold(self, start: Message) -> None:
        """Send the chunks so far, or wait for a pause between chunks, but not for hours."""
        if self._is_start_sent or not self._is_stored:
            await self._send_body(start, more=True)
            return
        if self._request.holds_transaction:
            return
        loop, pause = asyncio.get_running_loop(), self._policy.stream_after
        now = loop.time()
        if self._held_until is None:
            self._held_until = now + HELD_PAUSES * pause
        if now > self._held_until:
            await self._send_body(start, more=True)
        else:
            self._pause = loop.call_at(now + pause, self._end_holding, start)

    def _end_holding(self, start: Message) -> None:
        is_recorded = self._may_be_recorded(start)
        sending = self._begin_stream(start) if is_recorded else self._send_body(start, more=True)
        self._sending = asyncio.get_running_loop().create_task(sending)

    async def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._sending is not None:
            # Invariant: messages are sent one after the other. The app's next call raises the
            # error of the one before.
            sending, self._sending = self._sending, None
            await sending

    def _may_be_recorded(self, start: Message) -> bool:
        """Return whether the response may be recorded as a stream."""
        is_wanted = self._policy.stream == "record" and not self._is_start_sent
        return is_wanted and self._is_final(start["status"])

    async def _begin_stream(self, start: Message) -> None:
        """Record the response so far as a stream, and send it; later chunks go there too."""
        stream = self._stream = StreamRecorder(
            self._request.stream, self._send, self._policy, last_event_id=self.last_event_id
        )
        self._is_stored = False
        body = bytes(self._body)
        self._body.clear()
        await stream.begin(start, self._added_headers, self._recorded)
        await self._write(stream, body)

    async def _write(self, stream: StreamRecorder, chunk: bytes) -> None:
        if chunk:
            await stream.write(chunk)
        if not stream.is_recorded:
            self._may_report_disconnect.set()

    async def _complete(self, start: Message) -> None:
        """Commit the whole response, and send it."""
        is_final = self._is_final(start["status"])
        delay = 0.0 if is_final else self._delay(start)
        try:
            # Invariant: the response is committed before it is sent. A client that got more than
            # is durable could get another response to its retry.
            await self._commit(start, delay, is_final=is_final)
        except StorageError as error:
            if not await self._may_send_uncommitted(error):
                return
        except DurableError as error:
            self.is_taken_over = self._request.is_owned_elsewhere
            if not self.is_taken_over:
                await self.send_error(error)
            return
        if delay > 0 and RETRY_AFTER not in self._names:
            self._added_headers = [*self._added_headers, (RETRY_AFTER, whole_seconds(delay))]
        # Invariant: complete before it is sent. If the client cannot be reached, the committed
        # response stands all the same.
        self.complete = True
        if self._stream is None:
            await self._send_body(start, more=False)
        else:
            self._may_report_disconnect.set()
            await self._stream.end()

    async def _may_send_uncommitted(self, error: StorageError) -> bool:
        """Return whether the response is sent although its commit failed."""
        request = self._request
        if request.can_respond_again:
            text = "Request %s: its response was not committed, but its step log was: %s"
            logger.warning(text, request.workflow_id, error)
            return True
        text = "Request %s: its response was not committed: %s"
        logger.warning(text, request.workflow_id, error)
        if self._policy.on_store_error == "reject":
            await self.send_error(OutcomeUnknownError("send the request again"))
            return False
        self._added_headers = [*self._added_headers, IGNORED]
        return True

    def _delay(self, start: Message) -> float:
        """Return the seconds until a retry of a failed request is served."""
        if start["status"] < 500:
            return 0.0
        problem = current_problem_context.get()
        # The library has put the policy's delay into its own problem response.
        if problem is not None and problem.has_retry_time:
            return self.retry_delay
        delay = response_delay(self._policy, start["headers"])
        return self.retry_delay if delay is None else delay

    async def _commit(self, start: Message, delay: float, *, is_final: bool) -> None:
        request, status, stream = self._request, start["status"], self._stream
        chunks = self._request_body.chunks
        if self._request_body.is_interrupted:
            # Invariant: this response is not stored. The app got a disconnect because the engine
            # stops, and may have cut its work short; the retry continues it.
            await request.leave_for_retry(delay)
        elif is_final:
            if chunks is not None:
                await self._read_request(chunks)
            if stream is not None and stream.is_recorded:
                await request.finish(status, stream.headers, None, stream.end_offset)
                return
            may_compress = b"content-encoding" not in self._names
            await request.finish(status, *self._encoded(start), may_compress=may_compress)
        elif status >= 500 or self._has_recorded:
            await request.leave_for_retry(delay)
        elif status in _REPEATS_REQUEST:
            if chunks is not None:
                await self._read_request(chunks)
            await request.forget_redirected(status, *self._encoded(start))
        else:
            await request.forget()

    def _encoded(self, start: Message) -> tuple[bytes, bytes | None]:
        """Return the headers and the body as they are stored."""
        if self.session is not None:
            headers = self.session.encode_with(start["headers"])
        else:
            keeps_cookies = self._policy.keep_cookies
            headers = encode_headers(start["headers"], keeps_cookies=keeps_cookies)
        return headers, bytes(self._body) if self._is_stored else None

    async def _read_request(self, chunks: ChunkedBody) -> None:
        """Read the rest of a long request body, for the fingerprint of the whole.

        Raises:
            OutcomeUnknownError: The client disconnected; the request is left for its retry.
        """
        await chunks.read_to_end()
        if chunks.is_cut:
            # Invariant: a response without a fingerprint is not stored, and not sent either.
            await self._request.leave_for_retry()
            msg = "send the request again"
            raise OutcomeUnknownError(msg)

    @property
    def _has_recorded(self) -> bool:
        return self._request.has_recorded or bool(self._recorded)

    def _is_final(self, status: int) -> bool:
        """Return whether a response with this status becomes the request's outcome."""
        if self._request.has_final_response:
            return True
        if status in _REPEATS_REQUEST:
            return self._has_recorded
        if status in _NEVER_FINAL or status >= 500:
            return False
        return status < 400 or self._policy.store_4xx or self._has_recorded

    async def _send_body(self, start: Message, *, more: bool) -> None:
        """Send the bytes that are not sent yet, after the start if that is not sent yet."""
        if more and self._request.holds_transaction:
            # Invariant: the client gets nothing that may still be rolled back.
            msg = "a single transaction is committed with its response, which was sent in chunks"
            raise DurableUsageError(msg)
        if not self._is_stored or not more:
            self._may_report_disconnect.set()
        try:
            if not self._is_start_sent:
                self._is_start_sent = True
                headers = add_headers(start["headers"], self._added_headers)
                await self._send({**start, "headers": headers})
            chunk = self._take_unsent()
            await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        except OSError:
            # Servers raise it once the client has disconnected. A response that is stored is
            # completed all the same.
            if not self._is_stored or self._policy.on_disconnect == "cancel":
                raise

    def _take_unsent(self) -> bytes:
        if not self._is_stored:
            chunk = bytes(self._body)
            self._body.clear()
            return chunk
        chunk = bytes(memoryview(self._body)[self._sent_bytes :])
        self._sent_bytes = len(self._body)
        return chunk
