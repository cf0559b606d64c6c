"""Requests with an ``Idempotency-Key``: one execution, one answer, resumed by any retry.

A request with a key is a workflow. Its id is made of the key and of whose key it is; its
outcome is the answer. A retry finds it finished and is answered the same, or running and is
asked to come back, or interrupted and goes on after what is recorded.
"""

from __future__ import annotations

from typing import Protocol

from asgi_durable.context import current_request
from asgi_durable.engine.requests import (
    Answered,
    Claim,
    Claimed,
    InProgress,
    KeyReused,
    Request,
    Requests,
)
from asgi_durable.errors import (
    DurableError,
    KeyMalformedError,
    KeyMissingError,
    KeyReusedError,
    RequestInProgressError,
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
from asgi_durable.middleware.prefer import preferences
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.replay import send_answer
from asgi_durable.middleware.request_attempt import Connection, RequestAttempt
from asgi_durable.middleware.request_body import ClientGoneError, ReplayedBody, read_body
from asgi_durable.middleware.request_status import StatusPages, send_accepted

__all__ = ["IdempotencyMiddleware"]

_READING = frozenset({"GET", "HEAD"})


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
        prefix = self.policy.status_prefix
        self._pages = StatusPages(prefix) if prefix is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        # A stack inside another one, as of a mounted application, leaves the request to it.
        if scope["type"] != "http" or self.engine.is_in_request:
            await self.app(scope, receive, send)
        elif scope["method"] in self.policy.methods:
            await self._serve_covered(scope, receive, send)
        elif (
            self._pages is None
            or scope["method"] not in _READING
            or (page := self._pages.find(scope)) is None
        ):
            await self.app(scope, receive, send)
        else:
            try:
                principal = self._principal_of(scope)
                await self._pages.serve(scope, send, page, principal, self.engine.requests)
            except DurableError as error:
                await send_problem(send, error)

    async def _serve_covered(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        policy = self.policy
        sent_key = header_values(scope["headers"], self._header_name)[0]
        marks = [(self._header_name, sent_key)]
        try:
            body = await read_body(scope, receive, policy.max_request_body)
            workflow_id = request_workflow_id(self._principal_of(scope), key)
            marks.append((b"durable-id", workflow_id.encode("ascii")))
            connection = Connection(scope, ReplayedBody(body, receive), send)
            attempt = RequestAttempt(self.app, policy, connection, marks)
            request = Request(
                workflow_id=workflow_id,
                name=f"{scope['method']} {scope['path']}",
                fingerprint=request_fingerprint(scope, body),
                request_id=_request_id(),
                handler=attempt.handle,
            )
            with attempt.noticing_cancellation():
                claim = await self.engine.requests.claim(
                    request, wait_seconds=preferences(scope).wait_at_most(policy.twins_wait)
                )
        except DurableError as error:
            await send_problem(send, error, headers=marks)
            return
        if isinstance(claim, Claimed):
            with attempt.noticing_cancellation():
                await self._wait_for_answer(scope, send, claim, attempt, marks)
        else:
            await self._answer(scope, send, claim, workflow_id, marks)

    async def _wait_for_answer(
        self, scope: Scope, send: Send, claim: Claimed, attempt: RequestAttempt, marks: Headers
    ) -> None:
        """Wait for the app, unless the client would rather be told where to look."""
        wanted = preferences(scope)
        if wanted.respond_async and self._pages is not None:
            seconds = wanted.wait_at_most(self.policy.max_wait)
            if not await attempt.is_answered_within(claim, seconds):
                await self._send_accepted(scope, send, claim.run.workflow_id, marks)
                return
        await attempt.wait(claim)

    async def _answer(
        self, scope: Scope, send: Send, claim: Claim, workflow_id: str, marks: Headers
    ) -> None:
        """Answer for a request that is not carried out here and now."""
        match claim:
            case Answered():
                await send_answer(send, claim.response, marks)
            case InProgress() if preferences(scope).respond_async and self._pages is not None:
                await self._send_accepted(scope, send, workflow_id, marks)
            case InProgress():
                if self._pages is not None:
                    marks = [*marks, self._pages.location(scope, workflow_id)]
                message = "the first request with this key is still running; try again later"
                await send_problem(send, RequestInProgressError(message), headers=marks)
            case KeyReused():
                message = "this key was used for a request with another method, path or body"
                error = KeyReusedError(message, status_code=self.policy.status_of_reuse)
                await send_problem(send, error, headers=marks)

    async def _send_accepted(
        self, scope: Scope, send: Send, workflow_id: str, marks: Headers
    ) -> None:
        if self._pages is not None:
            location = self._pages.location(scope, workflow_id)
            await send_accepted(send, workflow_id, location, marks)

    def _principal_of(self, scope: Scope) -> bytes:
        return principal_of(scope, self.policy.principal, self.policy.session_cookie)


def _request_id() -> str:
    request = current_request.get()
    return request.request_id if request is not None else new_id()
