"""Requests with an ``Idempotency-Key``: one execution, one answer, resumed by any retry.

A request with a key is a workflow. Its id is made of the key and of whose key it is; its
outcome is the answer. A retry finds it finished and is answered the same, or running and is
asked to come back, or interrupted and goes on after what is recorded.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from asgi_durable.context import current_request
from asgi_durable.engine.requests import (
    Answered,
    Claimed,
    InProgress,
    KeyReused,
    RequestRun,
    Requests,
)
from asgi_durable.engine.run import Interrupted
from asgi_durable.errors import (
    DurableError,
    KeyReusedError,
    RequestInProgressError,
    ResponseNotKeptError,
)
from asgi_durable.ids import new_id
from asgi_durable.middleware.asgi import ASGIApp, Headers, Receive, Scope, Send, header_values
from asgi_durable.middleware.fingerprint import (
    idempotency_key,
    principal_of,
    request_fingerprint,
    request_workflow_id,
)
from asgi_durable.middleware.idempotency_policy import IdempotencyPolicy
from asgi_durable.middleware.problem_details import problem_response, send_problem
from asgi_durable.middleware.request_body import ClientGoneError, ReplayedBody, read_body
from asgi_durable.middleware.response_recording import ResponseRecorder, decode_headers
from asgi_durable.storage.records import ResponseRecord

__all__ = ["IdempotencyMiddleware"]

# They would take the answer's body past the recorder.
_HIDDEN_EXTENSIONS = frozenset(
    {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
)


class RequestSource(Protocol):
    """Claims requests; an :class:`~asgi_durable.engine.engine.Engine`."""

    @property
    def requests(self) -> Requests:
        """Workflows that are requests."""


class IdempotencyMiddleware:
    """Make requests that carry an ``Idempotency-Key`` durable; leave all others alone.

    Args:
        app: The ASGI app to wrap.
        engine: What keeps the requests.
        policy: Which requests are covered, and within which limits.
    """

    def __init__(
        self, app: ASGIApp, engine: RequestSource, *, policy: IdempotencyPolicy | None = None
    ) -> None:
        self.app = app
        self.engine = engine
        self.policy = policy or IdempotencyPolicy()
        self._header_name = self.policy.header_name.lower().encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or scope["method"] not in self.policy.methods:
            await self.app(scope, receive, send)
            return
        try:
            key = idempotency_key(scope, self._header_name)
        except DurableError as error:
            await send_problem(send, error)
            return
        if key is None:
            await self.app(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send, key)
        except ClientGoneError:
            return

    async def _serve(self, scope: Scope, receive: Receive, send: Send, key: bytes) -> None:
        sent_key = header_values(scope["headers"], self._header_name)[0]
        marks = [(self._header_name, sent_key)]
        try:
            body = await read_body(scope, receive, self.policy.max_request_body)
            principal = principal_of(scope, self.policy.principal)
            workflow_id = request_workflow_id(principal, key)
            marks.append((b"durable-id", workflow_id.encode("ascii")))
            attempt = _Attempt(self, scope, ReplayedBody(body, receive), send, marks)
            claim = await self.engine.requests.claim(
                workflow_id,
                name=f"{scope['method']} {scope['path']}",
                fingerprint=request_fingerprint(scope, body),
                request_id=_request_id(),
                handler=attempt.handle,
            )
        except DurableError as error:
            await send_problem(send, error, headers=marks)
            return
        match claim:
            case Claimed():
                await attempt.wait(claim)
            case Answered():
                await _send_answer(send, claim.response, marks)
            case InProgress():
                message = "the first request with this key is still running; try again later"
                await send_problem(send, RequestInProgressError(message), headers=marks)
            case KeyReused():
                message = "this key was used for a request with another method, path or body"
                await send_problem(send, KeyReusedError(message), headers=marks)


class _Attempt:
    """One try of one keyed request, while its handler runs in a task of the engine's."""

    def __init__(
        self,
        middleware: IdempotencyMiddleware,
        scope: Scope,
        body: ReplayedBody,
        send: Send,
        marks: Headers,
    ) -> None:
        self._app = middleware.app
        self._scope = _without_hidden_extensions(scope)
        self._body = body
        self._send = send
        self._marks = marks
        self._max_response_body = middleware.policy.max_response_body
        self._recorder: ResponseRecorder | None = None
        self._app_error: Exception | None = None

    async def handle(self, request: RequestRun) -> None:
        """Call the app; this is the body of the request's workflow."""
        recorder = self._recorder = ResponseRecorder(
            request,
            self._send,
            max_body_bytes=self._max_response_body,
            added_headers=self._marks,
        )
        try:
            await self._app(self._scope, self._body.receive, recorder.send)
        except Exception as error:  # raised again by `wait`, in the server's own task
            self._app_error = error
        finally:
            self._body.answer_complete.set()
        if not recorder.complete:
            # Invariant: an error is never an answer for ever; what is recorded is kept.
            await request.leave_for_retry()

    async def wait(self, claim: Claimed) -> None:
        """Wait until the app is through; background tasks that follow its answer included."""
        try:
            ending = await asyncio.shield(claim.over)
        except asyncio.CancelledError:
            # The server gave the connection up. The work goes on without it.
            if self._recorder is not None:
                self._recorder.client_gone = True
            raise
        if self._app_error is not None:
            raise self._app_error
        if self._recorder is None or not self._recorder.complete:
            error = ending.error if isinstance(ending, Interrupted) else None
            if not isinstance(error, DurableError):
                error = DurableError("Internal server error")
            await self._answer(error)

    async def _answer(self, error: DurableError) -> None:
        if self._recorder is not None:
            await self._recorder.answer(error)
        else:
            await send_problem(self._send, error, headers=self._marks)


async def _send_answer(send: Send, response: ResponseRecord, marks: Headers) -> None:
    """Send a finished request's answer again, byte for byte."""
    headers = [*decode_headers(response.headers), *marks, (b"idempotent-replayed", b"true")]
    status, body = response.status_code, response.body
    if body is None:
        error = ResponseNotKeptError("the request was carried out; its answer was not kept")
        locations = header_values(headers, b"location")
        members: dict[str, Any] = {
            "original_status": status,
            "location": locations[0].decode("latin-1") if locations else None,
        }
        status, headers, body = problem_response(error, members=members)
        headers = [*headers, *marks, (b"idempotent-replayed", b"true")]
    else:
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _without_hidden_extensions(scope: Scope) -> Scope:
    extensions = scope.get("extensions") or {}
    if _HIDDEN_EXTENSIONS.isdisjoint(extensions):
        return scope
    shown = {name: value for name, value in extensions.items() if name not in _HIDDEN_EXTENSIONS}
    return {**scope, "extensions": shown}


def _request_id() -> str:
    request = current_request.get()
    return request.request_id if request is not None else new_id()
