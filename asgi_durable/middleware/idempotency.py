"""Requests with an ``Idempotency-Key``: one execution, one answer, resumed by any retry.

A request with a key is a workflow. Its id is made of the key and of whose key it is; its
outcome is the answer. A retry finds it finished and is answered the same, or running and is
asked to come back, or interrupted and goes on after what is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from asgi_durable.context import current_request
from asgi_durable.engine.active_runs import wait_for
from asgi_durable.engine.endings import Interrupted
from asgi_durable.engine.requests import (
    Answered,
    Claimed,
    InProgress,
    KeyReused,
    Request,
    RequestRun,
    Requests,
)
from asgi_durable.errors import (
    DurableError,
    KeyMalformedError,
    KeyMissingError,
    KeyReusedError,
    RequestInProgressError,
    ResponseNotKeptError,
)
from asgi_durable.ids import new_id
from asgi_durable.middleware.asgi import (
    ASGIApp,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    header_values,
)
from asgi_durable.middleware.fingerprint import (
    idempotency_key,
    principal_of,
    request_fingerprint,
    request_workflow_id,
)
from asgi_durable.middleware.idempotency_policy import IdempotencyPolicy
from asgi_durable.middleware.prefer import wait_seconds
from asgi_durable.middleware.problem_details import problem_response, send_problem
from asgi_durable.middleware.request_body import ClientGoneError, ReplayedBody, read_body
from asgi_durable.middleware.response_recording import (
    REPLAYED_HEADER,
    ResponseRecorder,
    decode_headers,
    with_marks,
)
from asgi_durable.storage.records import ResponseRecord

__all__ = ["IdempotencyMiddleware"]

# They would take the answer's body past the recorder.
_HIDDEN_EXTENSIONS = frozenset(
    {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
)


_WITHOUT_BODY = frozenset({204, 304})


class RequestSource(Protocol):
    """Claims requests; an :class:`~asgi_durable.engine.engine.Engine`."""

    @property
    def requests(self) -> Requests:
        """Workflows that are requests."""

    @property
    def is_in_request(self) -> bool:
        """True where a claimed request is being handled."""


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
        docs_url = self.policy.docs_url
        self._links: Headers = (
            [(b"link", f'<{docs_url}>; rel="describedby"'.encode("ascii"))] if docs_url else []
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        # A stack inside another one, as of a mounted application, leaves the request to it.
        if (
            scope["type"] != "http"
            or scope["method"] not in self.policy.methods
            or self.engine.is_in_request
        ):
            await self.app(scope, receive, send)
            return
        try:
            key = idempotency_key(scope, self._header_name)
            if key is not None or self.policy.required:
                self._check(key)
        except DurableError as error:
            await send_problem(send, error, headers=self._links)
            return
        if key is None:
            await self.app(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send, key)
        except ClientGoneError:
            return

    def _check(self, key: bytes | None) -> None:
        policy = self.policy
        if key is None:
            if policy.required:
                msg = f"this request needs the header {policy.header_name}"
                raise KeyMissingError(msg)
        elif policy.validate_key is not None and not policy.validate_key(key.decode("ascii")):
            msg = "this key is not accepted here"
            raise KeyMalformedError(msg)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, key: bytes) -> None:
        sent_key = header_values(scope["headers"], self._header_name)[0]
        marks = [(self._header_name, sent_key)]
        try:
            body = await read_body(scope, receive, self.policy.max_request_body)
            policy = self.policy
            principal = principal_of(scope, policy.principal, policy.session_cookie)
            workflow_id = request_workflow_id(principal, key)
            marks.append((b"durable-id", workflow_id.encode("ascii")))
            attempt = _Attempt(self, scope, ReplayedBody(body, receive), send, marks)
            with attempt.noticing_cancellation():
                request = Request(
                    workflow_id=workflow_id,
                    name=f"{scope['method']} {scope['path']}",
                    fingerprint=request_fingerprint(scope, body),
                    request_id=_request_id(),
                    handler=attempt.handle,
                )
                claim = await self.engine.requests.claim(
                    request, wait_seconds=wait_seconds(scope, self.policy.max_wait)
                )
        except DurableError as error:
            await send_problem(send, error, headers=marks)
            return
        match claim:
            case Claimed():
                with attempt.noticing_cancellation():
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
        self._scope = scope
        self._body = body
        self._send = send
        self._marks = marks
        self._policy = middleware.policy
        self._recorder: ResponseRecorder | None = None
        self._app_error: Exception | None = None
        self._is_handled = False
        self._client_gone = False

    @contextmanager
    def noticing_cancellation(self) -> Iterator[None]:
        """Send nothing more once the server gives the connection up; the work goes on."""
        try:
            yield
        except asyncio.CancelledError:
            self._client_gone = True
            raise

    async def handle(self, request: RequestRun) -> None:
        """Call the app; this is the body of the request's workflow."""
        _hide_extensions(self._scope)
        recorder = self._recorder = ResponseRecorder(
            request,
            self._forward,
            policy=self._policy,
            added_headers=self._marks,
            sending=self._body.may_tell,
        )
        try:
            await self._app(self._scope, self._body.receive, recorder.send)
        except Exception as error:  # raised again by `wait`, in the server's own task
            self._app_error = error
        if not recorder.complete:
            # Invariant: an error is never an answer for ever; what is recorded is kept.
            await request.leave_for_retry()
        self._is_handled = True

    async def wait(self, claim: Claimed) -> None:
        """Wait until the app is through; background tasks that follow its answer included."""
        ending = await wait_for(claim.run, claim.run.done, asyncio.get_running_loop())
        if self._recorder is not None and self._recorder.complete:
            if self._app_error is not None:
                raise self._app_error
            return
        if self._is_handled and self._app_error is not None:
            raise self._app_error
        error: Exception = DurableError("Internal server error")
        if isinstance(ending, Interrupted) and not self._is_handled:
            error = ending.error
        if not isinstance(error, DurableError):
            raise error
        if self._recorder is not None:
            await self._recorder.answer(error)
        else:
            await send_problem(self._forward, error, headers=self._marks)

    async def _forward(self, message: Message) -> None:
        if not self._client_gone:
            await self._send(message)


async def _send_answer(send: Send, response: ResponseRecord, marks: Headers) -> None:
    """Send a finished request's answer again, byte for byte."""
    marks = [*marks, (REPLAYED_HEADER, b"true")]
    status, body = response.status_code, response.body
    headers = decode_headers(response.headers)
    if body is None:
        error = ResponseNotKeptError("the request was carried out; its answer was not kept")
        locations = header_values(headers, b"location")
        members: dict[str, Any] = {
            "original_status": status,
            "location": locations[0].decode("latin-1") if locations else None,
        }
        status, headers, body = problem_response(error, members=members)
    elif status not in _WITHOUT_BODY:
        headers.append((b"content-length", b"%d" % len(body)))
    await send(
        {"type": "http.response.start", "status": status, "headers": with_marks(headers, marks)}
    )
    await send({"type": "http.response.body", "body": body})


def _hide_extensions(scope: Scope) -> None:
    """Take extensions out of the scope itself: what the app puts in must reach who is outside."""
    extensions = scope.get("extensions") or {}
    if not _HIDDEN_EXTENSIONS.isdisjoint(extensions):
        scope["extensions"] = {
            name: value for name, value in extensions.items() if name not in _HIDDEN_EXTENSIONS
        }


def _request_id() -> str:
    request = current_request.get()
    return request.request_id if request is not None else new_id()
