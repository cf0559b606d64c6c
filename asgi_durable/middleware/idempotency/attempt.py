"""One attempt of a keyed request: the app is called, and its response recorded and sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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

__all__ = ["AttemptOutcome", "Client", "RequestAttempt"]

logger = logging.getLogger(__name__)

# Extensions with which an app would send its response's body past the recorder.
_HIDDEN_EXTENSIONS = frozenset(
    {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
)


class AttemptOutcome(Enum):
    """The reason why nobody waits for an attempt any more."""

    RESPONDED = auto()
    """The client has its response, or has disconnected."""
    OWNED_ELSEWHERE = auto()
    """Another executor has the request now."""
    SUSPENDED = auto()
    """The work sleeps, and continues without the client."""


class Client:
    """The client of one request, as the receiver of its response.

    It does not refer to the attempt. The attempt's objects refer to it, and a circle of them
    would stay in memory until the garbage collector runs.

    Args:
        send: Sends to the client.
        is_detached: See below.

    Attributes:
        is_detached: True once nothing more is sent to the client: it has disconnected, or the
            work continues without it.
        response_begun: Set once a response has begun.
        response_headers: Headers that are added to each response.
    """

    def __init__(self, send: Send, *, is_detached: bool = False) -> None:
        self._send = send
        self.is_detached = is_detached
        self.response_begun = asyncio.Event()
        self.response_headers: Headers = []

    async def send(self, message: Message) -> None:
        """Send a message, unless the client is detached."""
        if self.is_detached:
            return
        if message["type"] == "http.response.start":
            self.response_begun.set()
        try:
            await self._send(message)
        except OSError:
            self.is_detached = True
            raise

    async def end(self) -> None:
        """End the server's call for a client that disconnected before a response began."""
        if not self.response_begun.is_set():
            self.response_begun.set()
            await end_without_client(self._send)


class RequestAttempt:
    """One attempt of one keyed request. The app runs in a task of the engine.

    Args:
        app: The ASGI app.
        policy: The request's.
        connection: The request's; its body is read already.
        body: The whole body; or the object that returns its chunks, which is closed at the end.
        client: The receiver of the response.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: IdempotencyPolicy,
        connection: Connection,
        body: bytes | ChunkedBody,
        client: Client,
    ) -> None:
        self._app = app
        self._policy = policy
        self._scope = connection.scope
        self._client = client
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

    async def handle(self, request: ResponseCommit) -> None:
        """Call the app. This is the body of the request's workflow."""
        attempts, most = request.attempts, self._policy.max_attempts
        is_exhausted = most is not None and attempts > most
        recorder = self._recorder = self._record(request, attempts, is_exhausted=is_exhausted)
        try:
            with request.calling_on_stop(self._body.report_disconnect_at_stop):
                try:
                    if is_exhausted:
                        await self._give_up(request, recorder)
                    else:
                        await self._app(self._scope, self._body.receive, recorder.send)
                finally:
                    await self._close(recorder)
        except Exception as error:  # `wait` raises it in the server's own task
            self._app_error = error
            if self._client.is_detached:
                name = request_name(self._scope)
                text = "Request %s (%s) failed; its client has disconnected"
                logger.exception(text, request.workflow_id, name)
        except (asyncio.CancelledError, RunStopped):
            if not self._is_cancelled_by_client:
                raise
        if self._is_cancelled_by_client and request.run_end is None:
            await request.leave_after_stop()
        elif not recorder.complete:
            # Invariant: a failure is never the request's outcome. Its step log stays for a retry.
            await request.leave_for_retry(recorder.retry_delay)
        self._is_handled = True

    def _record(
        self, request: ResponseCommit, attempts: int, *, is_exhausted: bool
    ) -> ResponseRecorder:
        """Return the recorder of the app's response; prepare the scope and the body."""
        policy = self._policy
        _hide_extensions(self._scope)
        delay = policy_delay(policy, attempts)
        problem = current_problem_context.get()
        if problem is not None:
            problem.is_resumable = not is_exhausted
            problem.members["run"] = attempts
            problem.retry_delay = delay
        if isinstance(self._body.chunks, LongBody):
            self._body.chunks.on_whole = request.set_fingerprint
            self._body.chunks.on_cut = partial(self._stop_with_body, request)
        headers = self._client.response_headers
        recorder = ResponseRecorder(
            request,
            self._client.send,
            policy=policy,
            # The response to an exhausted request is the result of the attempts before.
            added_headers=[*headers, (REPLAYED_HEADER, b"true")] if is_exhausted else headers,
            request_body=self._body,
        )
        recorder.retry_delay = delay
        if policy.stream == "record":
            recorder.last_event_id = last_event_id(self._scope)
        if policy.keep_cookies and "session" in self._scope:
            recorder.session = SessionChanges(self._scope)
        return recorder

    def _stop_with_body(self, request: ResponseCommit) -> None:
        """Stop the work: the client disconnected before its request was complete.

        The app may do something else with a part of the body than with the whole body.
        """
        self._client.is_detached = self._is_cancelled_by_client = True
        request.stop("its client disconnected before its body was complete")

    async def _give_up(self, request: ResponseCommit, recorder: ResponseRecorder) -> None:
        """Record an error as the outcome of a request that had all its attempts."""
        request.give_up()
        text = f"it was tried {self._policy.max_attempts} times; it is not tried again"
        error = self._policy.with_own_status(AttemptsExhaustedError(text))
        await send_problem(recorder.send, error, headers=self._policy.links)

    async def _close(self, recorder: ResponseRecorder) -> None:
        await recorder.close()
        if self._body.chunks is not None:
            self._body.chunks.close()

    async def responds_within(self, claim: Claimed, seconds: float) -> bool:
        """Wait until a response has begun. If the time is over before, detach the client.

        The work continues, and its response is recorded. The time counts from the end of the
        request, because servers read no more of a request after its response. A client that is
        known to have disconnected counts as one with a response.
        """
        loop = asyncio.get_running_loop()
        waits = [
            loop.create_task(self._client.response_begun.wait()),
            loop.create_task(wait_for_first(claim.run.done, self._body.withheld)),
        ]
        chunks = self._body.chunks
        if chunks is not None:
            waits.append(loop.create_task(chunks.over.wait()))
        try:
            if chunks is not None:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(waits[:2], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        has_response = (
            self._client.response_begun.is_set()
            or claim.run.done.is_set()
            or self._body.withheld.is_set()
        )
        self._client.is_detached = self._client.is_detached or not has_response
        return has_response

    async def wait(
        self, claim: Claimed, *, may_leave: bool, longest_sleep: float | None
    ) -> AttemptOutcome:
        """Wait for the end of the app, with the background tasks that follow its response.

        Args:
            claim: The claim of this attempt.
            may_leave: True to return without a response if another executor has the request now.
            longest_sleep: Seconds. If the app sleeps for longer, the client is detached and the
                work continues. ``None`` to wait in any case.

        Raises:
            Exception: The app raised it.
        """
        if self._policy.on_disconnect == "cancel":
            async with self._watching_client(claim):
                end = await self._run_end(claim.run, longest_sleep)
        else:
            end = await self._run_end(claim.run, longest_sleep)
        if end is None:
            return await self._detach()
        is_complete = self._recorder is not None and self._recorder.complete
        if self._app_error is not None and (is_complete or self._is_handled):
            raise self._app_error
        if self._client.is_detached:
            await self._client.end()
        if is_complete or self._client.is_detached:
            return AttemptOutcome.RESPONDED
        error: Exception = DurableError("Internal server error")
        if isinstance(end, Interrupted) and not self._is_handled:
            has_sent = self._recorder is not None and self._recorder.has_sent
            if end.is_owned_elsewhere and may_leave and not has_sent:
                return AttemptOutcome.OWNED_ELSEWHERE
            error = end.error
        await self._respond_with(error)
        return AttemptOutcome.RESPONDED

    async def _detach(self) -> AttemptOutcome:
        """Let the work continue without its client."""
        self._client.is_detached = True
        if not self._body.withheld.is_set():
            return AttemptOutcome.SUSPENDED
        await self._client.end()
        return AttemptOutcome.RESPONDED

    async def _run_end(self, run: Run, longest_sleep: float | None) -> RunEnd | None:
        """Return the end of a run of this event loop, ``None`` to wait no longer.

        The run sleeps for too long then. Or the app waits for a disconnect, which it does not get
        before the engine stops: a server may only stop the engine after its last request.
        """
        withheld = self._body.withheld
        while not run.done.is_set():
            if withheld.is_set():
                # If the app has raised already, its error belongs to the server's task.
                return None if self._app_error is None else await run.done.wait()
            if longest_sleep is None:
                await wait_for_first(run.done, withheld)
                continue
            end_us = asleep_until_us(run)
            is_long = end_us is not None and seconds_until(end_us) > longest_sleep
            if is_long and not self._client.response_begun.is_set():
                return None
            await run.sleeps().wait_for_change(run.done, withheld)
        return run.done.get()

    async def _respond_with(self, error: Exception) -> None:
        """Respond with an error, because the app did not respond."""
        if not isinstance(error, DurableError):
            raise error
        if self._recorder is not None:
            await self._recorder.send_error(error)
        else:
            headers = [*self._client.response_headers, *self._policy.links]
            error = self._policy.with_own_status(error)
            await send_problem(self._client.send, error, headers=headers)

    @asynccontextmanager
    async def _watching_client(self, claim: Claimed) -> AsyncIterator[None]:
        """Stop the work once the client disconnects."""
        watch = asyncio.get_running_loop().create_task(self._cancel_at_disconnect(claim))
        try:
            yield
        except asyncio.CancelledError:
            # Some servers cancel the task of a client that disconnects.
            self._cancel(claim)
            raise
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _cancel_at_disconnect(self, claim: Claimed) -> None:
        await self._body.wait_until_disconnected()
        self._client.is_detached = True
        self._cancel(claim)

    def _cancel(self, claim: Claimed) -> None:
        run, recorder = claim.run, self._recorder
        # A complete response is stored: the retry gets it.
        if run.task is not None and (recorder is None or not recorder.is_ending):
            self._is_cancelled_by_client = True
            # Invariant: a run is stopped before its task is cancelled. Nothing that the app does
            # in response to the cancellation is recorded: a retry is not cancelled, and does
            # something else.
            disconnected = WorkflowInterruptedError(run.workflow_id, "its client has disconnected")
            run.stop(disconnected, retry_here=True)
            run.cancel()


def _hide_extensions(scope: Scope) -> None:
    """Remove extensions from the scope itself: middlewares around must see the app's changes."""
    extensions = scope.get("extensions") or {}
    if not _HIDDEN_EXTENSIONS.isdisjoint(extensions):
        scope["extensions"] = {
            name: value for name, value in extensions.items() if name not in _HIDDEN_EXTENSIONS
        }
