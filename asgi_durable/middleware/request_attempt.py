"""One try of a keyed request: the app is called, and its answer recorded and sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from asgi_durable.engine.active_runs import wait_for
from asgi_durable.engine.endings import Interrupted
from asgi_durable.engine.requests import Claimed, RequestRun
from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import ASGIApp, Headers, Message, Scope, Send
from asgi_durable.middleware.idempotency_policy import IdempotencyPolicy
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.request_body import ReplayedBody
from asgi_durable.middleware.response_recording import ResponseRecorder

__all__ = ["Connection", "RequestAttempt"]

logger = logging.getLogger(__name__)

# They would take the answer's body past the recorder.
_HIDDEN_EXTENSIONS = frozenset(
    {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
)


@dataclass(frozen=True, slots=True)
class Connection:
    """What a server has called the middleware with; the body is read already."""

    scope: Scope
    body: ReplayedBody
    send: Send


class RequestAttempt:
    """One try of one keyed request, while its handler runs in a task of the engine's."""

    def __init__(
        self,
        app: ASGIApp,
        policy: IdempotencyPolicy,
        connection: Connection,
        marks: Headers,
    ) -> None:
        self._app = app
        self._policy = policy
        self._scope = connection.scope
        self._body = connection.body
        self._send = connection.send
        self._marks = marks
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
            if self._client_gone:
                logger.exception("A request failed whose client has gone")
        if not recorder.complete:
            # Invariant: an error is never an answer for ever; what is recorded is kept.
            await request.leave_for_retry()
        self._is_handled = True

    async def is_answered_within(self, claim: Claimed, seconds: float) -> bool:
        """Wait until the answer is on its way; if it is not in time, it is not sent any more.

        The work goes on all the same, and so does the recording of its answer.
        """
        loop = asyncio.get_running_loop()
        waits = [
            loop.create_task(self._body.may_tell.wait()),
            loop.create_task(wait_for(claim.run, claim.run.done, loop)),
        ]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        is_answered = self._body.may_tell.is_set() or claim.run.done.is_set()
        self._client_gone = self._client_gone or not is_answered
        return is_answered

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


def _hide_extensions(scope: Scope) -> None:
    """Take extensions out of the scope itself: what the app puts in must reach who is outside."""
    extensions = scope.get("extensions") or {}
    if not _HIDDEN_EXTENSIONS.isdisjoint(extensions):
        scope["extensions"] = {
            name: value for name, value in extensions.items() if name not in _HIDDEN_EXTENSIONS
        }
