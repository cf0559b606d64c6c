"""Recording an app's answer: it is committed before it is sent."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable

from asgi_durable.engine.requests import RequestRun
from asgi_durable.errors import DurableError, OutcomeUnknownError, StorageError
from asgi_durable.middleware.asgi import Headers, Message, Send, header_values
from asgi_durable.middleware.idempotency_policy import IdempotencyPolicy
from asgi_durable.middleware.problem_details import send_problem

__all__ = [
    "REPLAYED_HEADER",
    "ResponseRecorder",
    "decode_headers",
    "encode_headers",
    "with_marks",
]

logger = logging.getLogger(__name__)

# What only concerns the connection, the moment or one client's session.
_NOT_KEPT = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"server-timing",
        b"set-cookie",
        b"te",
        b"traceparent",
        b"tracestate",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    }
)
# Answers about the moment or the sender, not about the request.
_NEVER_FINAL = frozenset({401, 403, 407, 408, 421, 425, 429})
# The client is to send the same request elsewhere, with the same key.
_ASKS_AGAIN = frozenset({307, 308})
REPLAYED_HEADER = b"idempotent-replayed"


class ResponseRecorder:
    """Takes the messages that an app sends in answer to one request.

    Nothing reaches the client before the answer is committed, except where it cannot be kept:
    an event stream, or a body longer than the limit, passes through as it is produced.

    Args:
        request: What the answer is committed to.
        send: Where the messages go.
        policy: Which answers are kept.
        added_headers: Put on the answer, in place of the app's own of the same names.
        sending: Set once the client gets to see something.

    Attributes:
        complete: True once the client has been answered in full.
    """

    def __init__(
        self,
        request: RequestRun,
        send: Send,
        *,
        policy: IdempotencyPolicy,
        added_headers: Headers,
        sending: asyncio.Event,
    ) -> None:
        self._request = request
        self._send = send
        self._sending = sending
        self._policy = policy
        self._added_headers = added_headers
        self._start: Message | None = None
        self._start_sent = False
        self._body = bytearray()
        self.complete = False

    async def send(self, message: Message) -> None:
        """Take the app's next message."""
        kind = message["type"]
        if kind == "http.response.start":
            self._start = message
            if self._is_event_stream(message):
                # At once: its first event may be long in coming, or never come.
                await self._send_body(message, more=True)
        elif kind != "http.response.body" or self._start is None or self.complete:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._complete(self._start)
            elif self._cannot_be_kept(self._start):
                await self._send_body(self._start, more=True)

    async def answer(self, error: DurableError) -> None:
        """Answer with an error of the library's, unless the client has an answer already."""
        if not self._start_sent:
            self._start_sent = True
            self._sending.set()
            await send_problem(self._send, error, headers=self._added_headers)
        self.complete = True

    def _cannot_be_kept(self, start: Message) -> bool:
        too_long = len(self._body) > self._policy.max_response_body
        return self._start_sent or too_long or self._is_event_stream(start)

    def _is_event_stream(self, start: Message) -> bool:
        media_type = header_values(start.get("headers", ()), b"content-type")
        return bool(media_type) and media_type[0].lower().startswith(b"text/event-stream")

    async def _complete(self, start: Message) -> None:
        try:
            # Invariant: committed first, then sent: the answer, or all that it is made of. What
            # is not known to be durable is not shown, and who asks again is answered the same.
            await self._commit(start)
        except StorageError as error:
            if not self._request.can_answer_again:
                logger.warning("An answer could not be committed: %s", error)
                await self.answer(OutcomeUnknownError("send the request again"))
                return
            logger.warning("An answer could not be committed; its log is: %s", error)
        except DurableError as error:
            await self.answer(error)
            return
        await self._send_body(start, more=False)
        self.complete = True

    async def _commit(self, start: Message) -> None:
        status = start["status"]
        if self._is_final(status):
            body = None if self._cannot_be_kept(start) else bytes(self._body)
            await self._request.finish(status, encode_headers(start.get("headers", ())), body)
        elif status >= 500 or self._request.has_recorded:
            await self._request.leave_for_retry()
        else:
            await self._request.forget()

    def _is_final(self, status: int) -> bool:
        if self._request.has_final_answer:
            return True
        if status in _ASKS_AGAIN:
            return self._request.has_recorded
        if status in _NEVER_FINAL or status >= 500:
            return False
        return status < 400 or self._policy.store_4xx or self._request.has_recorded

    async def _send_body(self, start: Message, *, more: bool) -> None:
        if not self._start_sent:
            self._start_sent = True
            self._sending.set()
            headers = with_marks(start.get("headers", ()), self._added_headers)
            await self._send({**start, "headers": headers})
        chunk = bytes(self._body)
        self._body.clear()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})


def with_marks(headers: Iterable[tuple[bytes, bytes]], marks: Headers) -> Headers:
    """Return an answer's headers with those of the library's, which an app may pass on."""
    ours = {REPLAYED_HEADER, *(name for name, _ in marks)}
    return [*((name, value) for name, value in headers if name.lower() not in ours), *marks]


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the headers that are kept with an answer, in order, as JSON."""
    kept = [
        (name.lower().decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name.lower() not in _NOT_KEPT
    ]
    return json.dumps(kept).encode("ascii")


def decode_headers(data: bytes) -> Headers:
    """Return what :func:`encode_headers` was given, without what is not kept."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(data)]
