"""Errors as ``application/problem+json`` responses (RFC 9457)."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from asgi_durable.codec.exceptions.stored_responses import is_kind_of
from asgi_durable.context import current_request
from asgi_durable.engine.runs.frame import current_frame
from asgi_durable.errors import (
    DurableError,
    DurableUsageError,
    EncodeError,
    FinalError,
    NonDeterministicWorkflowError,
    RecoveryAttemptsExceededError,
    RemoteError,
    StepInterruptedError,
)
from asgi_durable.middleware.asgi import ASGIApp, Headers, Message, Receive, Scope, Send
from asgi_durable.middleware.nested_requests import is_nested_request, without_outer_context
from asgi_durable.middleware.problem_context import ProblemContext, current_problem_context

__all__ = ["ProblemDetailsMiddleware", "problem_response", "send_problem"]

logger = logging.getLogger(__name__)

CONTENT_TYPE = b"application/problem+json"
TYPE_PREFIX = "urn:asgi-durable:problem:"
# A retry cannot succeed after these: the recorded outcome stands, the workflow is set aside, or
# the code has to change first.
_NOT_RESUMABLE = (
    DurableUsageError,
    EncodeError,
    FinalError,
    NonDeterministicWorkflowError,
    RecoveryAttemptsExceededError,
    StepInterruptedError,
)


class ProblemDetailsMiddleware:
    """Turn errors of the app into problem responses: a ``DurableError``'s own, else a bare 500.

    An error other than ``DurableError`` is raised again after the response, so that the server
    and the middlewares around this one still see it. Frameworks respond 500 to an unknown error
    and raise it all the same. So a 500 that is sent while a ``DurableError`` is being handled is
    held back, and replaced if the error is raised. Every other 500 is sent as soon as it is
    complete.

    Args:
        app: The ASGI app to wrap.

    Example:
        ``app = ProblemDetailsMiddleware(app)``
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if is_nested_request(scope):
            with without_outer_context():
                await self(scope, receive, send)
            return
        sender = _HoldingSender(receive, send)
        try:
            await self.app(scope, sender.receive, sender.send)
        except DurableError as error:
            if sender.has_sent:
                raise
            await send_problem(send, error)
        except Exception:
            await sender.release(instead=DurableError("Internal server error"))
            raise
        else:
            await sender.release()


class _HoldingSender:
    """Passes an app's messages on, but holds back a 500 whose error may still be raised.

    Attributes:
        held: The start of a 500, and its body if an error of the library is being handled.
        has_sent: True once the client has got a part of the response.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        # The caller may be handling an error of its own.
        self._error_outside = sys.exc_info()[1]
        self.held: list[Message] = []
        self.has_sent = False

    @property
    def is_whole(self) -> bool:
        """True if a complete response is held back."""
        return len(self.held) > 1

    async def receive(self) -> Message:
        # An app that waits for its client after a response needs the response to be sent.
        if self.held:
            await self.release()
        return await self._receive()

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and message["status"] == 500:
            self.held.append(message)
            return
        if self.held:
            is_last = kind == "http.response.body" and not message.get("more_body", False)
            if is_last and self._may_be_raised():
                self.held.append(message)
                return
            await self.release()
        self.has_sent = True
        await self._send(message)

    def _may_be_raised(self) -> bool:
        """Tell whether an error of the library is being handled where the app sends."""
        error = sys.exc_info()[1]
        return isinstance(error, DurableError) and error is not self._error_outside

    async def release(self, *, instead: DurableError | None = None) -> None:
        """Send the response held back, or *instead* where it is not complete."""
        if instead is not None and not self.is_whole:
            if not self.has_sent:
                await send_problem(self._send, instead)
            return
        held, self.held = self.held, []
        for message in held:
            self.has_sent = True
            await self._send(message)


async def send_problem(
    send: Send,
    error: DurableError,
    *,
    headers: Headers | None = None,
    members: Mapping[str, Any] | None = None,
) -> None:
    """Respond to a request with an error; see :func:`problem_response`.

    Args:
        send: The request's.
        error: The error to send.
        headers: Further headers of the response.
        members: Further members of the problem object.
    """
    status, own_headers, body = problem_response(error, members=members)
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [*own_headers, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


def problem_response(
    error: DurableError,
    *,
    members: Mapping[str, Any] | None = None,
) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of the response to an error.

    The body never has SQL, paths, arguments, or other users' data. Those go to the log.

    Args:
        error: The error to send.
        members: Further members of the problem object.
    """
    context = current_problem_context.get()
    if is_kind_of(error, FinalError):
        _mark_final(context)
    if error.status_code >= 500:
        logger.error("%s: %s", type(error).__name__, error, exc_info=error)
    request = current_request.get()
    retryable = error.retryable or _is_resumable(error, context)
    seconds = _retry_after(error, context)
    problem: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code.lower().replace("_", "-"),
        "title": error.title or _phrase(error.status_code),
        "status": error.status_code,
        "detail": error.detail,
        "code": error.code,
        "error": error.name if isinstance(error, RemoteError) else type(error).__name__,
        "request_id": request.request_id if request is not None else None,
        "retryable": retryable,
        **({"retry_after": seconds} if retryable else {}),
        **(context.members if context is not None else {}),
        **(members or {}),
    }
    body = json.dumps(problem).encode("ascii")
    headers = [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(body))]
    if retryable:
        headers.append((b"retry-after", b"%d" % seconds))
    return error.status_code, headers, body


def _is_resumable(error: DurableError, context: ProblemContext | None) -> bool:
    """Tell whether a retry of the failed keyed request continues behind its recorded steps."""
    return (
        context is not None
        and context.is_resumable
        and error.status_code >= 500
        and not is_kind_of(error, *_NOT_RESUMABLE)
    )


def _mark_final(context: ProblemContext | None) -> None:
    """Let the response to this error be stored, so that a retry gets it as well."""
    if context is not None:
        context.is_resumable = False
    frame = current_frame.get()
    if frame is not None and frame.run is not None:
        frame.run.mark_response_final()


def _phrase(status_code: int) -> str:
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return "Error"


def _retry_after(error: DurableError, context: ProblemContext | None) -> int:
    """Return the number of seconds after which a client may send the request again."""
    if context is None or "retry_after_seconds" in vars(error):
        return error.retry_after_seconds
    context.has_retry_time = True
    return max(error.retry_after_seconds, math.ceil(context.retry_delay))
