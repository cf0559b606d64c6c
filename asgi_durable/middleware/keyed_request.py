"""A request with a key, from its claim to its answer."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from asgi_durable.context import current_request
from asgi_durable.engine.refusals import Refused
from asgi_durable.engine.requests import (
    Answered,
    Claimed,
    FingerprintWanted,
    Followed,
    InProgress,
    Request,
    Requests,
)
from asgi_durable.engine.sleepers import asleep_until_us
from asgi_durable.errors import DurableError, StorageError
from asgi_durable.ids import new_id
from asgi_durable.middleware.asgi import ASGIApp, Headers, Message, header_values
from asgi_durable.middleware.body_source import BodySource, lift_limit, source_behind
from asgi_durable.middleware.current_key import AboutKey, current_key
from asgi_durable.middleware.fingerprint import (
    RequestHash,
    principal_of,
    request_fingerprint,
    request_workflow_id,
)
from asgi_durable.middleware.idempotency_policy import IdempotencyPolicy
from asgi_durable.middleware.kept_session import restore_session
from asgi_durable.middleware.long_body import (
    LongBody,
    Pieces,
    RefusedBody,
    SpentBody,
    SpooledBody,
)
from asgi_durable.middleware.prefer import preferences
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.refusal_errors import refusal_error
from asgi_durable.middleware.replay import RecordedAnswer, send_answer, send_stream
from asgi_durable.middleware.request_attempt import Connection, RequestAttempt, Waited
from asgi_durable.middleware.request_body import (
    ClientGoneError,
    ReplayedBody,
    read_start,
    too_large,
)
from asgi_durable.middleware.request_name import request_name
from asgi_durable.middleware.request_server import encode_request
from asgi_durable.middleware.request_status import StatusPages, send_accepted
from asgi_durable.middleware.response_headers import IGNORED, with_marks
from asgi_durable.request_errors import RequestInProgressError, ResponseDamagedError
from asgi_durable.storage.records import (
    PENDING_FINGERPRINT,
    ResponseRecord,
    WorkflowRecord,
    is_pending,
)

__all__ = ["KeyedRequest"]

logger = logging.getLogger(__name__)


class KeyedRequest:
    """Claims a request, and answers it: by the app, from the log, or that it has to wait.

    Args:
        app: What answers.
        requests: The workflows that are requests.
        policy: The request's.
        pages: Where the status of requests is served, if it is.
        connection: Where it came from.
    """

    def __init__(
        self,
        app: ASGIApp,
        requests: Requests,
        policy: IdempotencyPolicy,
        pages: StatusPages | None,
        connection: Connection,
    ) -> None:
        self._app = app
        self._requests = requests
        self._policy = policy
        self._pages = pages
        self._connection = connection
        self._scope, self._send = connection.scope, connection.send
        self._wanted = preferences(connection.scope)
        self._marks: Headers = []
        self._location: Headers = []
        self._about = AboutKey()
        self._principal = b""
        self._body: bytes | Pieces = b""
        self._source: BodySource | None = None
        self._waited_seconds = 0.0
        self._lost_at: float | None = None

    async def serve(self, key: bytes) -> None:
        """Serve the request.

        Raises:
            ClientGoneError: The client went away before its request was complete.
            Exception: What the app raised.
        """
        # The app's own task, and what it calls, inherit it.
        token = current_key.set(self._about)
        try:
            await self._serve(key)
        finally:
            current_key.reset(token)

    async def _serve(self, key: bytes) -> None:
        name = self._policy.header
        self._marks = [(name, header_values(self._scope["headers"], name)[0])]
        self._about.members["idempotency_key"] = key.decode("ascii")
        # Of the app's changes to it none may be left where it is called again.
        scope_before = dict(self._scope)
        try:
            workflow_id = self._identify(key)
            fingerprint = await self._read_body()
        except DurableError as error:
            await self._refuse(error)
            return
        request = self._request(workflow_id, fingerprint)
        while not await self._try(request):
            # What the other one made of it, or what is left to be done: the claim tells.
            self._lost_at = self._lost_at or time.monotonic()
            if self._source is not None:
                # What counts bytes on its way has counted these.
                self._source.forget()
                self._connection = replace(self._connection, ahead=None)
            self._scope.clear()
            self._scope.update(scope_before)

    async def _read_body(self) -> str:
        """Read the body, or its start, and return the fingerprint, or what stands for it."""
        scope, policy, receive = self._scope, self._policy, self._connection.receive
        source = self._source = source_behind(scope, receive)
        read = source.read_ahead if source is not None else receive
        try:
            start, is_whole = await read_start(scope, read, policy.max_request_body)
        except (ClientGoneError, DurableError):
            raise
        except Exception as error:  # of a middleware around this one
            self._body = RefusedBody(error)
            return PENDING_FINGERPRINT + new_id()
        self._body = start
        if is_whole and len(start) <= policy.max_request_body:
            self._connection = replace(self._connection, ahead=source)
            return request_fingerprint(scope, start, policy.make_fingerprint)
        if policy.oversize == "reject":
            raise too_large(policy.max_request_body)
        hashing = RequestHash(scope)
        if is_whole:
            self._connection = replace(self._connection, ahead=source)
            hashing.add(start)
            return hashing.fingerprint()
        self._body = LongBody(b"" if source is not None else start, receive, hashing)
        return PENDING_FINGERPRINT + new_id()

    def _identify(self, key: bytes) -> str:
        """Return the id of the request's workflow, and take note of what answers say of it."""
        scope, policy = self._scope, self._policy
        principal = principal_of(scope, policy.principal, policy.session_cookie)
        self._principal = principal
        endpoint = None
        if policy.scope == "endpoint":
            endpoint = f"{scope['method']} {scope['path']}".encode("utf-8", "surrogatepass")
        workflow_id = request_workflow_id(principal, key, endpoint)
        self._marks.append((b"durable-id", workflow_id.encode("ascii")))
        if self._pages is not None:
            # Now: a router that the app consists of changes the scope's path.
            location = self._pages.location(scope, workflow_id)
            self._location = [location]
            self._about.members["instance"] = location[1].decode("ascii")
        return workflow_id

    def _request(self, workflow_id: str, fingerprint: str) -> Request:
        scope, policy = self._scope, self._policy
        context = current_request.get()
        body = self._body
        data = None
        # A body that is not kept can only be sent again by its client.
        if policy.recover == "server" and isinstance(body, bytes):
            data = encode_request(scope, body, self._principal)
        return Request(
            workflow_id=workflow_id,
            name=request_name(scope),
            fingerprint=fingerprint,
            request_id=context.request_id if context is not None else new_id(),
            retention=policy.kept_for,
            follows=policy.stream == "record" and policy.dialect == "default",
            input=data,
            is_single_transaction=policy.single_transaction,
        )

    async def _try(self, request: Request) -> bool:
        """Answer the request; return False if it was taken over meanwhile and is to be claimed."""
        attempt = RequestAttempt(self._app, self._policy, self._connection, self._body, self._marks)
        began_at = time.monotonic()
        try:
            with attempt.noticing_cancellation():
                claim = await self._requests.claim(
                    request,
                    attempt.handle,
                    wait_seconds=self._twins_wait(),
                    patience_seconds=self._policy.max_wait,
                )
        except StorageError as error:
            if self._policy.on_store_error == "bypass":
                await self._serve_without_protection()
            else:
                await self._refuse(error)
            return True
        except DurableError as error:
            await self._refuse(error)
            return True
        if isinstance(claim, FingerprintWanted):
            self._waited_seconds = time.monotonic() - began_at
            try:
                fingerprint = await self._read_whole(claim)
            except DurableError as error:
                await self._refuse(error)
                return True
            return await self._try(replace(request, fingerprint=fingerprint))
        if not isinstance(claim, Claimed):
            await self._answer(claim, request.workflow_id)
            return True
        with attempt.noticing_cancellation():
            return await self._wait_for_answer(claim, attempt)

    async def _read_whole(self, wanted: FingerprintWanted) -> str:
        """Read a long body to its end, and return its fingerprint.

        Where the request is not finished the body may be needed, to go on with it: only the
        next claim tells. So it is kept, but not in memory.

        Raises:
            ClientGoneError: The client went away. A truncated body is never taken for a whole.
            Exception: A middleware has refused it.
        """
        body = self._body
        if isinstance(body, RefusedBody):
            raise body.refusal()
        if not isinstance(body, LongBody):
            msg = "a body that is whole has a fingerprint"
            raise TypeError(msg)
        if self._source is not None:
            # Who limits it on its way waits for the route to say how long it may be.
            body.read_from(self._source.receive)
        if wanted.workflow.is_final:
            await body.read_to_end()
            self._body = SpentBody(wanted.workflow.workflow_id)
        else:
            self._body = await SpooledBody.of(body)
        if body.is_cut:
            self._close_body()
            raise ClientGoneError
        return body.fingerprint

    def _close_body(self) -> None:
        if not isinstance(self._body, bytes):
            self._body.close()

    def _twins_wait(self) -> float:
        seconds = self._wanted.wait_at_most(self._policy.twins_wait) - self._waited_seconds
        accepted_after = self._accepted_after()
        return seconds if accepted_after is None else min(seconds, accepted_after)

    def _accepted_after(self) -> float | None:
        """Return after how many seconds the client is told where to look, ``None`` for never."""
        # A single transaction may be gone with its process: nothing is accepted before it is done.
        if self._pages is None or self._policy.single_transaction:
            return None
        if self._wanted.respond_async:
            return self._wanted.wait_at_most(self._policy.max_wait)
        return self._policy.async_after

    async def _wait_for_answer(self, claim: Claimed, attempt: RequestAttempt) -> bool:
        """Wait for the app, unless the client is rather to be told where to look."""
        seconds = self._accepted_after()
        if seconds is not None and not await attempt.is_answered_within(claim, seconds):
            await self._accept(claim.run.workflow_id, asleep_until_us(claim.run))
            return True
        is_late = (
            self._lost_at is not None and time.monotonic() > self._lost_at + self._policy.max_wait
        )
        # The pieces of a long body are given once.
        may_leave = not is_late and isinstance(self._body, bytes)
        waited = await attempt.wait(claim, may_leave=may_leave, longest_sleep=self._longest_sleep())
        if waited is Waited.SUSPENDED:
            await self._accept(claim.run.workflow_id, asleep_until_us(claim.run))
        return waited is not Waited.ELSEWHERE

    def _longest_sleep(self) -> float | None:
        """Return how many seconds of sleep the client waits for, ``None`` for any number."""
        if self._pages is None or not isinstance(self._body, bytes):
            return None
        return self._wanted.wait_at_most(self._policy.max_wait)

    async def _answer(self, claim: Refused | Followed | Answered, workflow_id: str) -> None:
        """Answer for a request that is not carried out here and now."""
        self._close_body()
        await self._begin_answer()
        logger.debug("Request %s: asked for again, %s", workflow_id, type(claim).__name__)
        match claim:
            case Answered() if claim.response.stream_end is None:
                self._about.members["run"] = claim.workflow.attempts
                await self._replay(claim.response)
            case Answered():
                await self._send_stream(claim.workflow, claim.response)
            case Followed():
                await self._send_stream(claim.workflow, None)
            case InProgress() if self._may_accept(claim):
                await self._accept(workflow_id, claim.sleeps_until_us)
            case _:
                if isinstance(claim, InProgress):
                    self._about.members["run"] = claim.workflow.attempts
                    self._marks += self._location
                await self._refuse(refusal_error(claim))

    async def _replay(self, response: ResponseRecord) -> None:
        restore_session(self._scope, response.headers)
        try:
            await send_answer(self._send, response, self._marks, policy=self._policy)
        except ResponseDamagedError as error:
            await self._refuse(error)

    async def _send_stream(self, workflow: WorkflowRecord, response: ResponseRecord | None) -> None:
        answer = RecordedAnswer(workflow.workflow_id, workflow.created_at_us, response)
        streams = self._requests.streams
        try:
            is_sent = await send_stream(self._scope, self._send, streams, answer, self._marks)
        except StorageError as error:
            await self._refuse(error)
            return
        if not is_sent:
            # It was given up or forgotten a moment ago.
            await self._refuse(RequestInProgressError("the answer has just changed; try again"))

    def _may_accept(self, twin: InProgress) -> bool:
        # Of one without a fingerprint nobody knows whether it is the same request.
        if self._pages is None or is_pending(twin.workflow.fingerprint):
            return False
        return self._accepted_after() is not None or twin.sleeps_until_us is not None

    async def _accept(self, workflow_id: str, sleeps_until_us: int | None) -> None:
        headers = [*self._marks, *self._location]
        if self._wanted.respond_async:
            headers.append((b"preference-applied", b"respond-async"))
        await send_accepted(self._send, workflow_id, headers, sleeps_until_us=sleeps_until_us)

    async def _begin_answer(self) -> None:
        """Get ready for an answer that the app is not asked for."""
        await lift_limit(self._scope, self._connection.receive, self._send)

    async def _refuse(self, error: DurableError) -> None:
        self._close_body()
        await self._begin_answer()
        headers = [*self._marks, *self._policy.links]
        await send_problem(self._send, self._policy.restated(error), headers=headers)

    async def _serve_without_protection(self) -> None:
        marks = [*self._marks, IGNORED]

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = with_marks(message.get("headers", ()), marks)
                message = {**message, "headers": headers}
            await self._send(message)

        connection = self._connection
        replayed = ReplayedBody(self._body, connection.receive, ahead=connection.ahead)
        replayed.may_tell.set()
        try:
            await self._app(self._scope, replayed.receive, send)
        finally:
            if replayed.pieces is not None:
                replayed.pieces.close()
