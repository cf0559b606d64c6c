"""A request with a key, from its claim to its answer."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from asgi_durable.context import current_request
from asgi_durable.engine.requests.claim_results import Refused
from asgi_durable.engine.requests.claims import (
    Answered,
    Claimed,
    FingerprintWanted,
    Followed,
    InProgress,
    KeyReused,
    Request,
    Requests,
)
from asgi_durable.engine.requests.request_ids import former_workflow_id
from asgi_durable.engine.runs.suspension import asleep_until_us
from asgi_durable.errors import DurableError, EncryptionKeyMissingError, StorageError
from asgi_durable.ids import new_id
from asgi_durable.middleware.asgi import ASGIApp, Headers, header_values, request_name
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.idempotency.attempt import RequestAttempt, Waited
from asgi_durable.middleware.idempotency.keyed_body import KeyedBody
from asgi_durable.middleware.idempotency.prefer import preferences
from asgi_durable.middleware.idempotency.refusal_errors import refusal_error
from asgi_durable.middleware.idempotency.server_recovery import encode_request
from asgi_durable.middleware.idempotency.status_pages import StatusPages, accepted_response
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.problem_context import ProblemContext, current_problem_context
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.request_bodies.body_source import lift_limit
from asgi_durable.middleware.request_bodies.replayed_body import (
    ReplayedBody,
)
from asgi_durable.middleware.responses.headers import IGNORED, marking
from asgi_durable.middleware.responses.replay import (
    StoredResponse,
    send_stored_response,
    send_stream,
)
from asgi_durable.middleware.responses.session_changes import restore_session
from asgi_durable.request_errors import RequestInProgressError, ResponseDamagedError
from asgi_durable.storage.records import (
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
        # The key as it was sent, and with it all that is put on each answer.
        self._echo: Headers = []
        self._response_headers: Headers = []
        self._location: Headers = []
        self._about = ProblemContext()
        self._principal = b""
        self._former_id: str | None = None
        self._body = KeyedBody(connection, policy, requests.fingerprints)
        self._waited_seconds = 0.0
        self._lost_at: float | None = None

    async def serve(self, key: bytes) -> None:
        """Serve the request.

        Raises:
            ClientDisconnectedError: The client went away before its request was complete.
            Exception: What the app raised.
        """
        # The app's own task, and what it calls, inherit it.
        token = current_problem_context.set(self._about)
        try:
            await self._serve(key)
        finally:
            current_problem_context.reset(token)

    async def _serve(self, key: bytes) -> None:
        name = self._policy.header
        if name is not None:
            self._echo = [(name, header_values(self._scope["headers"], name)[0])]
            self._response_headers = [*self._echo]
        self._about.members["idempotency_key"] = key.decode("ascii")
        # Of the app's changes to it none may be left where it is called again.
        scope_before = dict(self._scope)
        try:
            workflow_id = self._identify(key)
            fingerprint = await self._body.read()
        except DurableError as error:
            await self._refuse(error)
            return
        try:
            workflow_id = await self._known_id(workflow_id)
        except StorageError as error:
            await self._do_without_storage(error)
            return
        request = self._request(workflow_id, fingerprint)
        while not await self._try(request):
            # What the other one made of it, or what is left to be done: the claim tells.
            self._lost_at = self._lost_at or time.monotonic()
            self._body.give_again()
            self._scope.clear()
            self._scope.update(scope_before)

    def _identify(self, key: bytes) -> str:
        """Return the id of the request's workflow, and take note of what answers say of it."""
        scope, policy = self._scope, self._policy
        sender = policy.senders.sender_of(scope, self._connection.api_keys)
        self._principal = sender.principal
        parts = [key]
        if policy.scope == "endpoint":
            endpoint = f"{scope['method']} {scope['path']}"
            parts.append(endpoint.encode("utf-8", "surrogatepass"))
        ids = self._requests.ids
        if ids.may_be_former:
            former = policy.senders.former_principal(scope, sender)
            self._former_id = former_workflow_id(former, *parts) if former is not None else None
        workflow_id = ids.workflow_id(sender.scope, *parts)
        self._mark(workflow_id)
        return workflow_id

    def _mark(self, workflow_id: str) -> None:
        self._response_headers = [*self._echo, (b"durable-id", workflow_id.encode("ascii"))]
        if self._pages is not None:
            # Now: a router that the app consists of changes the scope's path.
            location = self._pages.location(self._scope, workflow_id)
            self._location = [location]
            self._about.members["instance"] = location[1].decode("ascii")

    async def _known_id(self, workflow_id: str) -> str:
        """Return the id of the request's workflow; a former one if the key was claimed under it.

        Raises:
            StorageError: It is not known under which.
        """
        former = self._former_id
        if former is None or not await self._requests.is_known(former):
            return workflow_id
        self._mark(former)
        return former

    def _request(self, workflow_id: str, fingerprint: str) -> Request:
        scope, policy = self._scope, self._policy
        context = current_request.get()
        body = self._body.content
        data = None
        # A body that is not kept can only be sent again by its client.
        if policy.recover == "server" and isinstance(body, bytes):
            data = encode_request(scope, body, self._principal)
        return Request(
            workflow_id=workflow_id,
            name=request_name(scope),
            fingerprint=fingerprint,
            request_id=context.request_id if context is not None else new_id(),
            retention=policy.final_retention,
            follows=policy.stream == "record" and policy.dialect == "default",
            input=data,
            is_single_transaction=policy.single_transaction,
            fingerprint_like=self._body.fingerprint_like,
            other_fingerprints=self._body.other_fingerprints,
        )

    async def _try(self, request: Request) -> bool:
        """Answer the request; return False if it was taken over meanwhile and is to be claimed."""
        body = self._body
        attempt = RequestAttempt(
            self._app, self._policy, body.connection, body.content, self._response_headers
        )
        began_at = time.monotonic()
        try:
            with attempt.noticing_cancellation():
                claim = await self._requests.claim(
                    request,
                    attempt.handle,
                    wait_seconds=self._twins_wait(),
                    storage_retry_seconds=self._policy.max_wait,
                )
        except StorageError as error:
            await self._do_without_storage(error)
            return True
        except DurableError as error:
            await self._refuse(error)
            return True
        if isinstance(claim, FingerprintWanted):
            self._waited_seconds = time.monotonic() - began_at
            return await self._try_compared(request, claim)
        if not isinstance(claim, Claimed):
            if not (isinstance(claim, KeyReused) and await self._redirects_again(request)):
                await self._answer(claim, request.workflow_id)
            return True
        with attempt.noticing_cancellation():
            return await self._wait_for_answer(claim, attempt)

    async def _try_compared(self, request: Request, wanted: FingerprintWanted) -> bool:
        """Go on with a request once all of its body is read; see :meth:`_try`."""
        try:
            fingerprint = await self._body.read_whole(wanted, self._requests.spool)
        except DurableError as error:
            await self._refuse(error)
            return True
        return await self._try(replace(request, fingerprint=fingerprint))

    def _twins_wait(self) -> float:
        seconds = self._wanted.wait_at_most(self._policy.duplicates_wait) - self._waited_seconds
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
        may_leave = not is_late and isinstance(self._body.content, bytes)
        waited = await attempt.wait(claim, may_leave=may_leave, longest_sleep=self._longest_sleep())
        if waited is Waited.SUSPENDED:
            await self._accept(claim.run.workflow_id, asleep_until_us(claim.run))
        return waited is not Waited.ELSEWHERE

    def _longest_sleep(self) -> float | None:
        """Return how many seconds of sleep the client waits for, ``None`` for any number."""
        if self._pages is None or not isinstance(self._body.content, bytes):
            return None
        return self._wanted.wait_at_most(self._policy.max_wait)

    async def _answer(self, claim: Refused | Followed | Answered, workflow_id: str) -> None:
        """Answer for a request that is not carried out here and now."""
        self._body.close()
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
                    self._response_headers += self._location
                await self._refuse(refusal_error(claim))

    async def _replay(self, response: ResponseRecord) -> None:
        try:
            response = self._requests.opened(response)
            restore_session(self._scope, response.headers)
            await send_stored_response(
                self._send, response, self._response_headers, policy=self._policy
            )
        except (EncryptionKeyMissingError, ResponseDamagedError) as error:
            await self._refuse(error)

    async def _redirects_again(self, request: Request) -> bool:
        """Redirect a request whose key is taken by the one that it was redirected to."""
        try:
            redirect = await self._requests.redirect_of(request)
        except StorageError as error:
            await self._refuse(error)
            return True
        if redirect is None:
            return False
        self._body.close()
        await self._begin_answer()
        await self._replay(redirect)
        return True

    async def _send_stream(self, workflow: WorkflowRecord, response: ResponseRecord | None) -> None:
        answer = StoredResponse(workflow.workflow_id, workflow.created_at_us, response)
        streams = self._requests.streams
        try:
            is_sent = await send_stream(
                self._body.connection, streams, answer, self._response_headers
            )
        except (EncryptionKeyMissingError, ResponseDamagedError, StorageError) as error:
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
        headers = [*self._response_headers, *self._location]
        if self._wanted.respond_async:
            headers.append((b"preference-applied", b"respond-async"))
        response = accepted_response(workflow_id, headers, sleeps_until_us=sleeps_until_us)
        await response(self._scope, self._connection.receive, self._send)

    async def _begin_answer(self) -> None:
        """Get ready for an answer that the app is not asked for."""
        await lift_limit(self._scope, self._connection.receive, self._send)

    async def _refuse(self, error: DurableError) -> None:
        self._body.close()
        await self._begin_answer()
        headers = [*self._response_headers, *self._policy.links]
        await send_problem(self._send, self._policy.with_own_status(error), headers=headers)

    async def _do_without_storage(self, error: StorageError) -> None:
        if self._policy.on_store_error == "bypass":
            await self._serve_without_protection()
        else:
            await self._refuse(error)

    async def _serve_without_protection(self) -> None:
        send = marking(self._send, [*self._response_headers, IGNORED])
        body, connection = self._body.content, self._body.connection
        replayed = ReplayedBody(body, connection.receive, ahead=connection.ahead)
        replayed.may_report_disconnect.set()
        try:
            await self._app(self._scope, replayed.receive, send)
        finally:
            if replayed.chunks is not None:
                replayed.chunks.close()
