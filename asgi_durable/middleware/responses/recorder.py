"""Records an app's response: it is committed before it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from asgi_durable.engine.requests.claims import ResponseCommit
from asgi_durable.errors import DurableError, DurableUsageError, StorageError
from asgi_durable.middleware.asgi import Headers, Message, Send, header_values
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.policies.retry_after import RETRY_AFTER, response_delay, whole_seconds
from asgi_durable.middleware.problem_context import current_problem_context
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.request_bodies.long_body import ChunkedBody
from asgi_durable.middleware.request_bodies.replayed_body import ReplayedBody
from asgi_durable.middleware.responses.headers import IGNORED, add_headers, encode_headers
from asgi_durable.middleware.responses.server_sent_events import is_event_stream
from asgi_durable.middleware.responses.session_changes import SessionChanges
from asgi_durable.middleware.responses.stream_recorder import RecordedStream
from asgi_durable.request_errors import OutcomeUnknownError
from asgi_durable.storage.records import ChunkRecord

__all__ = ["ResponseRecorder"]

logger = logging.getLogger(__name__)

# Responses about the moment or the sender, not about the request.
_NEVER_FINAL = frozenset({401, 403, 407, 408, 421, 425, 429})
# They repeat the request at another path, with the same key. Were this response stored under the
# key, the request there would be refused with 422; so the key is left free, unless something was
# recorded. Routers respond so if a slash is missing.
_ASKS_AGAIN = frozenset({307, 308})
# How long chunks are held that follow each other without a pause, as a multiple of the pause.
HELD_PAUSES = 4


class ResponseRecorder:
    """Receives the messages of an app's response to one request, commits them, and sends them.

    No part of a response reaches the client before it is committed, except if its body comes in
    chunks with pauses in between, or for long: these are passed on as they come, and the last one
    when the whole is committed. An event stream, and a body longer than the limit, are not stored.
    If the policy records streams, all three are recorded chunk by chunk instead.

    Args:
        request: Commits the response.
        send: Sends the messages.
        policy: Decides which responses are stored.
        added_headers: Added to the response, in place of the app's own of the same names.
        request_body: Read to its end before a response is stored. Its ``may_report_disconnect``
            is set once a disconnect may stop the app, as its response is not stored, or is
            committed.

    Attributes:
        complete: True once the last message is being sent.
        is_ending: True once the app's response is complete.
        is_taken_over: True if another executor owns the request, and this response is void.
        seen: The id of the last event of a stream that the client has seen.
        session: The changes of the request's session to store, if it has one.
        retry_delay: The seconds of the policy before the next attempt. Drawn once for each attempt,
            so that the delay in the response is the one that is enforced.
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
        self._may_report_disconnect = request_body.may_report_disconnect
        self._request_body = request_body
        self._request_pieces = request_body.chunks
        self._policy = policy
        self._added_headers = added_headers
        self._start: Message | None = None
        self._start_sent = False
        self._body = bytearray()
        self._unsent = bytearray()
        self._is_kept = True
        self._held_until: float | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._passing_on: asyncio.Task[None] | None = None
        self._stream: RecordedStream | None = None
        # Of what earlier executions have recorded as a stream.
        self._recorded: list[ChunkRecord] = []
        self.seen: bytes | None = None
        self.session: SessionChanges | None = None
        self.retry_delay = 0.0
        self.complete = False
        self.is_ending = False
        self.is_taken_over = False

    @property
    def has_sent(self) -> bool:
        """True once the client has seen a part of the response."""
        return self._start_sent or (self._stream is not None and self._stream.has_sent)

    async def send(self, message: Message) -> None:
        """Take the app's next message."""
        await self._end_pause()
        kind = message["type"]
        if self.is_taken_over:
            return
        if kind == "http.response.start":
            # They may be given once only, and are read several times.
            message = self._start = {**message, "headers": list(message.get("headers", ()))}
            if self._policy.stream == "record" and await self._is_streamed(message):
                await self._begin_stream(message)
            elif is_event_stream(message.get("headers", ())):
                self._is_kept = False
                # At once: its first event may be long in coming, or never come.
                await self._send_body(message, more=True)
        elif kind != "http.response.body" or self._start is None or self.complete:
            await self._send(message)
        else:
            await self._take(self._start, message)

    async def answer(self, error: DurableError) -> None:
        """Respond with an error of the library, unless the client has a response already."""
        await self._end_pause()
        self.complete = True
        self._may_report_disconnect.set()
        if not self.has_sent:
            self._start_sent = True
            headers = [*self._added_headers, *self._policy.links]
            await send_problem(self._send, self._policy.with_own_status(error), headers=headers)

    async def close(self) -> None:
        """Pass nothing on any more by itself: the app has ended."""
        with contextlib.suppress(OSError):
            await self._end_pause()
            if self._stream is not None:
                await self._stream.close()

    async def _take(self, start: Message, message: Message) -> None:
        """Handle a chunk of the body."""
        is_last = not message.get("more_body", False)
        await self._add(start, message.get("body", b""))
        if is_last:
            self.is_ending = True
            if self._stream is not None:
                await self._stream.finish()
            await self._complete(start)
        elif self._stream is not None:
            return
        elif self._start_sent or not self._is_kept:
            await self._send_body(start, more=True)
        else:
            await self._hold(start)

    async def _hold(self, start: Message) -> None:
        """Wait for the next chunk, but not for ever: chunks may come one by one for hours."""
        if self._request.holds_transaction:
            return
        loop, pause = asyncio.get_running_loop(), self._policy.stream_after
        now = loop.time()
        if self._held_until is None:
            self._held_until = now + HELD_PAUSES * pause
        if now > self._held_until:
            await self._send_body(start, more=True)
        else:
            self._pause = loop.call_at(now + pause, self._pass_on, start)

    async def _add(self, start: Message, piece: bytes) -> None:
        if self._stream is not None:
            await self._write(self._stream, piece)
            return
        self._unsent += piece
        if self._is_kept:
            self._body += piece
            if len(self._body) > self._policy.max_response_body:
                self._is_kept = False
                self._body.clear()
                if self._may_be_recorded(start):
                    await self._begin_stream(start)

    def _pass_on(self, start: Message) -> None:
        is_recorded = self._may_be_recorded(start)
        passing = self._begin_stream(start) if is_recorded else self._send_body(start, more=True)
        self._passing_on = asyncio.get_running_loop().create_task(passing)

    async def _is_streamed(self, start: Message) -> bool:
        """Tell whether the response is recorded as a stream from its start."""
        if self._request.attempts > 1:
            self._recorded = await self._request.stream.read(-1)
        # The recorded part was shown, so the response of this attempt continues it.
        is_wanted = bool(self._recorded) or is_event_stream(start.get("headers", ()))
        return is_wanted and self._may_be_recorded(start)

    def _may_be_recorded(self, start: Message) -> bool:
        is_wanted = self._policy.stream == "record" and not self._start_sent
        return is_wanted and self._is_final(start["status"])

    async def _begin_stream(self, start: Message) -> None:
        """Record and send the response so far, and from now on each chunk of it."""
        stream = self._stream = RecordedStream(
            self._request.stream, self._send, self._policy, seen=self.seen
        )
        self._is_kept = False
        body = bytes(self._unsent)
        self._unsent.clear()
        self._body.clear()
        await stream.begin(start, self._added_headers, self._recorded)
        await self._write(stream, body)

    async def _write(self, stream: RecordedStream, piece: bytes) -> None:
        if piece:
            await stream.write(piece)
        if not stream.is_kept:
            self._may_report_disconnect.set()

    async def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._passing_on is not None:
            # Invariant: one message after the other; what fails, fails in the app's next call.
            passing_on, self._passing_on = self._passing_on, None
            await passing_on

    async def _complete(self, start: Message) -> None:
        headers, delay = self._added_headers, self._delay(start)
        try:
            # Invariant: committed first, then sent: the response, or everything that it is made of.
            # Nothing is shown that is not known to be durable, so a retry has the same response.
            await self._commit(start, delay)
        except StorageError as error:
            if not self._request.can_respond_again:
                workflow_id = self._request.workflow_id
                logger.warning("Request %s: its answer was not committed: %s", workflow_id, error)
                if self._policy.on_store_error == "reject":
                    await self.answer(OutcomeUnknownError("send the request again"))
                    return
                headers = [*headers, IGNORED]
            else:
                logger.warning(
                    "Request %s: its answer was not committed, and its log is: %s",
                    self._request.workflow_id,
                    error,
                )
        except DurableError as error:
            self.is_taken_over = self._request.is_owned_elsewhere
            if not self.is_taken_over:
                await self.answer(error)
            return
        if delay > 0 and not header_values(start.get("headers", ()), RETRY_AFTER):
            headers = [*headers, (RETRY_AFTER, whole_seconds(delay))]
        self._added_headers = headers
        # Invariant: complete before it is sent. Whatever that raises, it stands.
        self.complete = True
        if self._stream is None:
            await self._send_body(start, more=False)
        else:
            self._may_report_disconnect.set()
            await self._stream.end()

    def _delay(self, start: Message) -> float:
        """Return for how long the request is not tried again."""
        status = start["status"]
        if status < 500 or self._is_final(status):
            return 0.0
        about = current_problem_context.get()
        # The library's own response is not the app's.
        if about is not None and about.has_retry_time:
            return self.retry_delay
        said = response_delay(self._policy, start.get("headers", ()))
        return self.retry_delay if said is None else said

    async def _commit(self, start: Message, delay: float) -> None:
        status, stream, pieces = start["status"], self._stream, self._request_pieces
        if self._request_body.is_interrupted:
            # Invariant: an app's response to a disconnect is not final. The disconnect was reported
            # because of the stop; the retry continues after the log.
            await self._request.leave_for_retry(delay)
        elif self._is_final(status):
            if pieces is not None:
                await self._read_request(pieces)
            if stream is not None and stream.is_kept:
                await self._request.finish(status, stream.headers, None, stream.end_offset)
                return
            is_encoded = bool(header_values(start.get("headers", ()), b"content-encoding"))
            await self._request.finish(status, *self._kept(start), may_compress=not is_encoded)
        elif status >= 500 or self._has_recorded:
            await self._request.leave_for_retry(delay)
        elif status in _ASKS_AGAIN:
            if pieces is not None:
                await self._read_request(pieces)
            await self._request.forget_redirected(status, *self._kept(start))
        else:
            await self._request.forget()

    def _kept(self, start: Message) -> tuple[bytes, bytes | None]:
        """Return the headers and the body of the response to store."""
        headers = start.get("headers", ())
        if self.session is not None:
            kept = self.session.encode_with(headers)
        else:
            kept = encode_headers(headers, keeps_cookies=self._policy.keep_cookies)
        return kept, bytes(self._body) if self._is_kept else None

    async def _read_request(self, pieces: ChunkedBody) -> None:
        """Read what the app has left of a long request: only the whole has a fingerprint.

        Raises:
            OutcomeUnknownError: It is not to be had, and the request is left for its retry.
        """
        await pieces.read_to_end()
        if pieces.is_cut:
            # Invariant: without a fingerprint no response is final, and none is shown.
            await self._request.leave_for_retry()
            msg = "send the request again"
            raise OutcomeUnknownError(msg)

    @property
    def _has_recorded(self) -> bool:
        return self._request.has_recorded or bool(self._recorded)

    def _is_final(self, status: int) -> bool:
        if self._request.has_final_response:
            return True
        if status in _ASKS_AGAIN:
            return self._has_recorded
        if status in _NEVER_FINAL or status >= 500:
            return False
        return status < 400 or self._policy.store_4xx or self._has_recorded

    async def _send_body(self, start: Message, *, more: bool) -> None:
        if more and self._request.holds_transaction:
            # Invariant: nothing is shown that may be rolled back still.
            msg = "a single transaction is committed with its answer, which was sent in pieces"
            raise DurableUsageError(msg)
        if not self._is_kept or not more:
            self._may_report_disconnect.set()
        try:
            await self._pass_body(start, more=more)
        except OSError:
            # Servers raise so once the client has disconnected. It does not stop the work.
            if not self._is_kept or self._policy.on_disconnect == "cancel":
                raise

    async def _pass_body(self, start: Message, *, more: bool) -> None:
        if not self._start_sent:
            self._start_sent = True
            headers = add_headers(start.get("headers", ()), self._added_headers)
            await self._send({**start, "headers": headers})
        chunk = bytes(self._unsent)
        self._unsent.clear()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
