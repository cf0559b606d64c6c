"""One try of a keyed request: the app is called, and its answer recorded and sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from enum import Enum, auto
from functools import partial

from asgi_durable.concurrency.once import wait_for_first
from asgi_durable.engine.requests.claims import Claimed, ResponseCommit
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import RunEnd
from asgi_durable.engine.runs.suspension import asleep_until_us, seconds_until
from asgi_durable.engine.stopping import Interrupted, RunStopped
from asgi_durable.errors import DurableError, WorkflowInterruptedError
from asgi_durable.middleware.asgi import ASGIApp, Headers, Message, Scope, Send, request_name
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.policies.retry_after import policy_delay
from asgi_durable.middleware.problem_context import current_problem_context
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.request_bodies.long_body import ChunkedBody, LongBody
from asgi_durable.middleware.request_bodies.replayed_body import ReplayedBody, end_without_client
from asgi_durable.middleware.responses.headers import REPLAYED_HEADER
from asgi_durable.middleware.responses.recorder import ResponseRecorder
from asgi_durable.middleware.responses.server_sent_events import last_event_id
from asgi_durable.middleware.responses.session_changes import SessionChanges
from asgi_durable.request_errors import AttemptsExhaustedError

__all__ = ["RequestAttempt", "Waited"]

logger = logging.getLogger(__name__)

# They would take the answer's body past the recorder.
_HIDDEN_EXTENSIONS = frozenset(
    {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
)


class Waited(Enum):
    """What has become of a try that was waited for."""

    ANSWERED = auto()
    """The client has its answer, or has gone."""
    ELSEWHERE = auto()
    """Another executor has the request now."""
    SUSPENDED = auto()
    """The work sleeps, and goes on without the client."""


class _Client:
    """Whom a try's answer is for; as a block, what the server may give the connection up in.

    It does not refer to the try: what sends to it, and is kept by that, would close a circle
    that only the collector could free.

    Attributes:
        has_gone: True once nothing more is to be sent.
        answer_begun: Set once the answer is on its way.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_gone = False
        self.answer_begun = asyncio.Event()

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        """Take note that the server has given the connection up, by a cancellation."""
        if exc_type is not None and issubclass(exc_type, asyncio.CancelledError):
            self.has_gone = True

    async def send(self, message: Message) -> None:
        """Send a message, unless nobody is there."""
        if self.has_gone:
            return
        if message["type"] == "http.response.start":
            self.answer_begun.set()
        try:
            await self._send(message)
        except OSError:
            self.has_gone = True
            raise

    async def dismiss(self) -> None:
        """End the call of a client that has gone without an answer."""
        if not self.answer_begun.is_set():
            self.answer_begun.set()
            await end_without_client(self._send)


class RequestAttempt:
    """One try of one keyed request, while its handler runs in a task of the engine's.

    Args:
        app: What answers.
        policy: The request's.
        connection: Where it came from; its body is read already.
        body: That; or what gives it piece by piece, and is closed when the app is through.
        marks: Put on the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: IdempotencyPolicy,
        connection: Connection,
        body: bytes | ChunkedBody,
        marks: Headers,
    ) -> None:
        self._app = app
        self._policy = policy
        self._scope = connection.scope
        self._client = _Client(connection.send)
        self._response_headers = marks
        self._seen = last_event_id(connection.scope)
        self._is_cancelled_by_client = False
        self._body = ReplayedBody(
            body,
            connection.receive,
            is_watched=policy.on_disconnect == "cancel",
            ahead=connection.ahead,
        )
        self._recorder: ResponseRecorder | None = None
        self._app_error: Exception | None = None
        self._is_handled = False

    def noticing_cancellation(self) -> AbstractContextManager[None]:
        """Send nothing more once the server gives the connection up; the work goes on."""
        return self._client

    def has_no_client(self) -> None:
        """Send nothing: nobody is there."""
        self._client.has_gone = True

    async def handle(self, request: ResponseCommit) -> None:
        """Call the app; this is the body of the request's workflow."""
        recorder = self._recorder = self._begin(request)
        recorder.seen = self._seen
        try:
            with request.telling_of_stop(self._body.report_disconnect_at_stop):
                await self._call_app(request, recorder)
        except Exception as error:  # raised again by `wait`, in the server's own task
            self._app_error = error
            if self._client.has_gone:
                name = request_name(self._scope)
                text = "Request %s (%s) failed; its client has gone"
                logger.exception(text, request.workflow_id, name)
        except (asyncio.CancelledError, RunStopped):
            if not self._is_cancelled_by_client:
                raise
        if self._is_cancelled_by_client and request.ending is None:
            await request.let_go()
        elif not recorder.complete:
            # Invariant: an error is never an answer for ever; what is recorded is kept.
            await request.leave_for_retry(recorder.retry_delay)
        self._is_handled = True

    def _begin(self, request: ResponseCommit) -> ResponseRecorder:
        _hide_extensions(self._scope)
        is_used_up = self._is_used_up(request)
        delay = policy_delay(self._policy, request.attempts)
        about = current_problem_context.get()
        if about is not None:
            about.is_resumable = not is_used_up
            about.members["run"] = request.attempts
            about.retry_delay = delay
        if isinstance(self._body.chunks, LongBody):
            self._body.chunks.on_whole = request.set_fingerprint
            self._body.chunks.on_cut = partial(self._stop_with_body, request)
        # Nothing was carried out for this answer; it is that of the attempts before.
        marks = (
            [*self._response_headers, (REPLAYED_HEADER, b"true")]
            if is_used_up
            else self._response_headers
        )
        recorder = ResponseRecorder(
            request,
            self._client.send,
            policy=self._policy,
            added_headers=marks,
            request_body=self._body,
        )
        recorder.retry_delay = delay
        if self._policy.keep_cookies and "session" in self._scope:
            recorder.session = SessionChanges(self._scope)
        return recorder

    def _stop_with_body(self, request: ResponseCommit) -> None:
        """Take note that the client has gone before its request was complete.

        What the app makes of a part of it is no part of what the whole comes to.
        """
        self._client.has_gone = self._is_cancelled_by_client = True
        request.stop("its client has gone before its body was whole")

    def _is_used_up(self, request: ResponseCommit) -> bool:
        most = self._policy.max_attempts
        return most is not None and request.attempts > most

    async def _call_app(self, request: ResponseCommit, recorder: ResponseRecorder) -> None:
        try:
            if self._is_used_up(request):
                request.give_up()
                tried = f"it was tried {self._policy.max_attempts} times; it is not tried again"
                error = self._policy.with_own_status(AttemptsExhaustedError(tried))
                await send_problem(recorder.send, error, headers=self._policy.links)
            else:
                await self._app(self._scope, self._body.receive, recorder.send)
        finally:
            await recorder.close()
            if self._body.chunks is not None:
                self._body.chunks.close()

    async def is_answered_within(self, claim: Claimed, seconds: float) -> bool:
        """Wait until the answer is on its way; if it is not in time, it is not sent any more.

        The work goes on all the same, and so does the recording of its answer. The time counts
        from the end of the request: servers take nothing more of one that is answered. A client
        that is known to have disconnected counts as answered.
        """
        loop = asyncio.get_running_loop()
        waits = [
            loop.create_task(self._client.answer_begun.wait()),
            loop.create_task(wait_for_first(claim.run.done, self._body.withheld)),
        ]
        pieces = self._body.chunks
        if pieces is not None:
            waits.append(loop.create_task(pieces.over.wait()))
        try:
            if pieces is not None:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(waits[:2], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        is_answered = (
            self._client.answer_begun.is_set()
            or claim.run.done.is_set()
            or self._body.withheld.is_set()
        )
        self._client.has_gone = self._client.has_gone or not is_answered
        return is_answered

    async def wait(self, claim: Claimed, *, may_leave: bool, longest_sleep: float | None) -> Waited:
        """Wait until the app is through; background tasks that follow its answer included.

        Args:
            claim: Of this try.
            may_leave: True to leave the client without an answer where another executor has
                the request now.
            longest_sleep: Seconds; where the app sleeps longer the client is left without an
                answer, and the work goes on. ``None`` to wait in any case.
        """
        if self._policy.on_disconnect == "cancel":
            async with self._watching_client(claim):
                ending = await self._ending(claim.run, longest_sleep)
        else:
            ending = await self._ending(claim.run, longest_sleep)
        if ending is None:
            return await self._let_go()
        is_complete = self._recorder is not None and self._recorder.complete
        if self._app_error is not None and (is_complete or self._is_handled):
            raise self._app_error
        if self._client.has_gone:
            await self._client.dismiss()
        if is_complete or self._client.has_gone:
            return Waited.ANSWERED
        error: Exception = DurableError("Internal server error")
        if isinstance(ending, Interrupted) and not self._is_handled:
            has_sent = self._recorder is not None and self._recorder.has_sent
            if ending.is_owned_elsewhere and may_leave and not has_sent:
                return Waited.ELSEWHERE
            error = ending.error
        await self._answer(error)
        return Waited.ANSWERED

    async def _let_go(self) -> Waited:
        """Let the work go on without its client."""
        self._client.has_gone = True
        if not self._body.withheld.is_set():
            return Waited.SUSPENDED
        await self._client.dismiss()
        return Waited.ANSWERED

    async def _ending(self, run: Run, longest_sleep: float | None) -> RunEnd | None:
        """Return how a run of this event loop has ended, ``None`` to wait no longer.

        The run sleeps for too long then, or the app waits for a disconnect that is withheld from
        it until the engine stops. A server may begin to stop only after its last request.
        """
        withheld = self._body.withheld
        while not run.done.is_set():
            if withheld.is_set():
                # The app has raised already: that error belongs to the server's task.
                return None if self._app_error is None else await run.done.wait()
            if longest_sleep is None:
                await wait_for_first(run.done, withheld)
                continue
            end_us = asleep_until_us(run)
            is_long = end_us is not None and seconds_until(end_us) > longest_sleep
            if is_long and not self._client.answer_begun.is_set():
                return None
            await run.sleeps().wait_for_change(run.done, withheld)
        return run.done.get()

    async def _answer(self, error: Exception) -> None:
        """Answer in the app's place, which did not."""
        if not isinstance(error, DurableError):
            raise error
        if self._recorder is not None:
            await self._recorder.answer(error)
        else:
            headers = [*self._response_headers, *self._policy.links]
            error = self._policy.with_own_status(error)
            await send_problem(self._client.send, error, headers=headers)

    @asynccontextmanager
    async def _watching_client(self, claim: Claimed) -> AsyncIterator[None]:
        """Stop the work once the client has gone."""
        watch = asyncio.get_running_loop().create_task(self._cancel_with_client(claim))
        try:
            yield
        except asyncio.CancelledError:
            # So some servers tell that the client has gone.
            self._cancel(claim)
            raise
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _cancel_with_client(self, claim: Claimed) -> None:
        await self._body.wait_until_disconnected()
        self._client.has_gone = True
        self._cancel(claim)

    def _cancel(self, claim: Claimed) -> None:
        run, recorder = claim.run, self._recorder
        # An answer that is whole is kept: the retry gets it.
        if run.task is not None and (recorder is None or not recorder.is_ending):
            self._is_cancelled_by_client = True
            # Invariant: stopped before cancelled. What the app does about the cancellation is
            # not recorded; its retry, which is not cancelled, would come to something else.
            gone = WorkflowInterruptedError(run.workflow_id, "its client has gone")
            run.stop(gone, retry_here=True)
            run.cancel()


def _hide_extensions(scope: Scope) -> None:
    """Take extensions out of the scope itself: what the app puts in must reach who is outside."""
    extensions = scope.get("extensions") or {}
    if not _HIDDEN_EXTENSIONS.isdisjoint(extensions):
        scope["extensions"] = {
            name: value for name, value in extensions.items() if name not in _HIDDEN_EXTENSIONS
        }
