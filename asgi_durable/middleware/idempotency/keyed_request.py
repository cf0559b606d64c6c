"""A request with a key, from its claim to its response."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from asgi_durable.context import current_request
from asgi_durable.engine.requests.claim_results import Refusal, whole_seconds_until
from asgi_durable.engine.requests.claims import (
    Cancelled,
    Claimed,
    Expired,
    FingerprintWanted,
    Finished,
    InProgress,
    KeyReused,
    Request,
    Requests,
    RetryLater,
    Streaming,
)
from asgi_durable.engine.requests.request_ids import former_workflow_id
from asgi_durable.engine.runs.suspension import asleep_until_us
from asgi_durable.errors import DurableError, EncryptionKeyMissingError, StorageError
from asgi_durable.ids import new_id
from asgi_durable.middleware.asgi import ASGIApp, Headers, request_name
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.idempotency.attempt import AttemptOutcome, Client, RequestAttempt
from asgi_durable.middleware.idempotency.keyed_body import KeyedBody
from asgi_durable.middleware.idempotency.server_recovery import encode_request
from asgi_durable.middleware.idempotency.status_pages import StatusPages, accepted_response
from asgi_durable.middleware.idempotency.waiting import wait_times
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.problem_context import ProblemContext, current_problem_context
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.request_bodies.body_source import lift_limit
from asgi_durable.middleware.request_bodies.replayed_body import ReplayedBody
from asgi_durable.middleware.responses.headers import IGNORED, adding_headers
from asgi_durable.middleware.responses.replay import (
    StoredResponse,
    send_stored_response,
    send_stream,
)
from asgi_durable.middleware.responses.session_changes import restore_session
from asgi_durable.request_errors import (
    KeyExpiredError,
    KeyReusedError,
    RequestCancelledError,
    RequestInProgressError,
    ResponseDamagedError,
    RetryLaterError,
)
from asgi_durable.storage.records import ResponseRecord, WorkflowRecord, is_pending

__all__ = ["KeyedRequest"]

logger = logging.getLogger(__name__)


class KeyedRequest:
    """Claims a request and responds to it: by the app, from its stored response, or by a refusal.

    Args:
        app: The ASGI app.
        requests: Claims requests.
        policy: The request's.
        pages: The status pages of requests, if there are any.
        connection: The request's.
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
        self._client = Client(connection.send)
        self._times = wait_times(connection.scope, policy, has_pages=pages is not None)
        # The header with the key, as it was sent.
        self._key_header: Headers = []
        self._location: Headers = []
        self._problem_context = ProblemContext()
        self._principal = b""
        self._former_id: str | None = None
        self._body = KeyedBody(connection, policy, requests.fingerprints)
        self._waited_seconds = 0.0
        self._taken_over_at: float | None = None

    async def serve(self, key: bytes) -> None:
        """Serve the request.

        Raises:
            ClientDisconnectedError: The client disconnected before its request was complete.
            Exception: The app raised it.
        """
        # The app's task, and everything that it calls, inherit this context.
        token = current_problem_context.set(self._problem_context)
        # If the app is called again, it gets the scope without its changes.
        scope_before = dict(self._scope)
        try:
            request = await self._prepare(key)
            while request is not None and not await self._claim(request):
                # Another executor took the request over. The next claim finds it finished or free.
                self._taken_over_at = self._taken_over_at or time.monotonic()
                self._body.give_again()
                self._scope.clear()
                self._scope.update(scope_before)
        except asyncio.CancelledError:
            # The server gave the connection up. The work continues without its client.
            self._client.is_detached = True
            raise
        finally:
            current_problem_context.reset(token)

    async def _prepare(self, key: bytes) -> Request | None:
        """Return the request as the engine claims it; ``None`` if it has its response already."""
        header = self._policy.header
        if header is not None:
            lines = self._scope["headers"]
            self._key_header = [(header, value) for name, value in lines if name.lower() == header]
            self._client.response_headers = [*self._key_header]
        self._problem_context.members["idempotency_key"] = key.decode("ascii")
        try:
            workflow_id = self._identify(key)
            fingerprint = await self._body.read()
        except DurableError as error:
            await self._refuse(error)
            return None
        former = self._former_id
        try:
            # The key may be taken by a request whose id is of the former kind.
            if former is not None and await self._requests.is_known(former):
                workflow_id = former
                self._add_headers(former)
        except StorageError as error:
            await self._do_without_storage(error)
            return None
        return self._request(workflow_id, fingerprint)

    def _identify(self, key: bytes) -> str:
        """Return the id of the request's workflow, and add it to the headers of responses."""
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
        self._add_headers(workflow_id)
        return workflow_id

    def _add_headers(self, workflow_id: str) -> None:
        self._client.response_headers = [
            *self._key_header,
            (b"durable-id", workflow_id.encode("ascii")),
        ]
        if self._pages is not None:
            # Before the app is called: if the app is a router, it changes the scope's path.
            location = self._pages.location(self._scope, workflow_id)
            self._location = [location]
            self._problem_context.members["instance"] = location[1].decode("ascii")

    def _request(self, workflow_id: str, fingerprint: str) -> Request:
        scope, policy = self._scope, self._policy
        context = current_request.get()
        body = self._body.content
        data = None
        # A body that is not in memory is not stored: only its client can send it again.
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

    async def _claim(self, request: Request) -> bool:
        """Claim the request and respond; return False if another executor took it over."""
        attempt = RequestAttempt(
            self._app,
            self._policy,
            self._body.connection,
            self._body.content,
            self._client,
        )
        wait_seconds = self._times.duplicate - self._waited_seconds
        if self._times.accepted_after is not None:
            wait_seconds = min(wait_seconds, self._times.accepted_after)
        began_at = time.monotonic()
        try:
            claim = await self._requests.claim(
                request,
                attempt.handle,
                wait_seconds=wait_seconds,
                storage_retry_seconds=self._policy.max_wait,
            )
        except StorageError as error:
            await self._do_without_storage(error)
            return True
        except DurableError as error:
            await self._refuse(error)
            return True
        match claim:
            case Claimed():
                return await self._wait_for_app(claim, attempt)
            case FingerprintWanted():
                self._waited_seconds = time.monotonic() - began_at
                return await self._claim_with_whole_body(request, claim)
            case _:
                await self._respond(claim, request)
                return True

    async def _claim_with_whole_body(self, request: Request, wanted: FingerprintWanted) -> bool:
        """Read all of the body, which the comparison with another request needs, and claim."""
        try:
            fingerprint = await self._body.read_whole(wanted, self._requests.spool)
        except DurableError as error:
            await self._refuse(error)
            return True
        return await self._claim(replace(request, fingerprint=fingerprint))

    async def _wait_for_app(self, claim: Claimed, attempt: RequestAttempt) -> bool:
        """Wait for the app's response, or send 202 if it takes too long; see :meth:`_claim`."""
        times, run = self._times, claim.run
        seconds = times.accepted_after
        if seconds is not None and not await attempt.responds_within(claim, seconds):
            await self._accept(run.workflow_id, asleep_until_us(run))
            return True
        is_late = (
            self._taken_over_at is not None
            and time.monotonic() > self._taken_over_at + self._policy.max_wait
        )
        # The chunks of a long body are returned once only.
        is_in_memory = isinstance(self._body.content, bytes)
        outcome = await attempt.wait(
            claim,
            may_leave=is_in_memory and not is_late,
            longest_sleep=times.longest_sleep if is_in_memory else None,
        )
        if outcome is AttemptOutcome.SUSPENDED:
            await self._accept(run.workflow_id, asleep_until_us(run))
        return outcome is not AttemptOutcome.OWNED_ELSEWHERE

    async def _respond(self, claim: Refusal | Streaming | Finished, request: Request) -> None:
        """Respond to a request that the app is not called for."""
        if isinstance(claim, KeyReused) and await self._replay_redirect(request):
            return
        self._body.close()
        await lift_limit(self._scope, self._connection.receive, self._send)
        logger.debug("Request %s: asked for again, %s", request.workflow_id, type(claim).__name__)
        match claim:
            case Finished() if claim.response.stream_end is None:
                self._problem_context.members["run"] = claim.workflow.attempts
                await self._replay(claim.response)
            case Finished():
                await self._send_stream(claim.workflow, claim.response)
            case Streaming():
                await self._send_stream(claim.workflow, None)
            case InProgress() if self._may_accept(claim):
                await self._accept(request.workflow_id, claim.sleeps_until_us)
            case _:
                if isinstance(claim, InProgress):
                    self._problem_context.members["run"] = claim.workflow.attempts
                    self._client.response_headers += self._location
                await self._refuse(_refusal_error(claim))

    async def _replay(self, response: ResponseRecord) -> None:
        try:
            response = self._requests.opened(response)
            if "session" in self._scope:
                restore_session(self._scope, response.headers)
            await send_stored_response(
                self._send, response, self._client.response_headers, policy=self._policy
            )
        except (EncryptionKeyMissingError, ResponseDamagedError) as error:
            await self._refuse(error)

    async def _replay_redirect(self, request: Request) -> bool:
        """Redirect a request again; return False if it was not redirected before.

        The request at the redirect's target has taken its key.
        """
        try:
            redirect = await self._requests.redirect_of(request)
        except StorageError as error:
            await self._refuse(error)
            return True
        if redirect is None:
            return False
        self._body.close()
        await lift_limit(self._scope, self._connection.receive, self._send)
        await self._replay(redirect)
        return True

    async def _send_stream(self, workflow: WorkflowRecord, response: ResponseRecord | None) -> None:
        stored = StoredResponse(workflow.workflow_id, workflow.created_at_us, response)
        try:
            is_sent = await send_stream(
                self._body.connection, self._requests.streams, stored, self._client.response_headers
            )
        except (EncryptionKeyMissingError, ResponseDamagedError, StorageError) as error:
            await self._refuse(error)
            return
        if not is_sent:
            # The stream was given up or deleted a moment ago.
            await self._refuse(RequestInProgressError("the response has just changed; try again"))

    def _may_accept(self, running: InProgress) -> bool:
        # Without its fingerprint it may be another request.
        if self._pages is None or is_pending(running.workflow.fingerprint):
            return False
        return self._times.accepted_after is not None or running.sleeps_until_us is not None

    async def _accept(self, workflow_id: str, sleeps_until_us: int | None) -> None:
        headers = [*self._client.response_headers, *self._location]
        if self._times.respond_async:
            headers.append((b"preference-applied", b"respond-async"))
        response = accepted_response(workflow_id, headers, sleeps_until_us=sleeps_until_us)
        await response(self._scope, self._connection.receive, self._send)

    async def _refuse(self, error: DurableError) -> None:
        self._body.close()
        await lift_limit(self._scope, self._connection.receive, self._send)
        headers = [*self._client.response_headers, *self._policy.links]
        await send_problem(self._send, self._policy.with_own_status(error), headers=headers)

    async def _do_without_storage(self, error: StorageError) -> None:
        if self._policy.on_store_error == "bypass":
            await self._serve_without_protection()
        else:
            await self._refuse(error)

    async def _serve_without_protection(self) -> None:
        send = adding_headers(self._send, [*self._client.response_headers, IGNORED])
        body, connection = self._body.content, self._body.connection
        replayed = ReplayedBody(body, connection.receive, ahead=connection.ahead)
        replayed.may_report_disconnect.set()
        try:
            await self._app(self._scope, replayed.receive, send)
        finally:
            if replayed.chunks is not None:
                replayed.chunks.close()


def _refusal_error(refused: Refusal) -> DurableError:
    """Return the error that a client gets if its request is not claimed."""
    match refused:
        case InProgress():
            message = "the first request with this key is still running; try again later"
            error = RequestInProgressError(message)
            error.retry_after_seconds = whole_seconds_until(refused.sleeps_until_us or 0)
            return error
        case KeyReused():
            message = "this key was used for a request with another method, path or body"
            return KeyReusedError(message)
        case Cancelled():
            message = "the request with this key was cancelled; do not send it again"
            return RequestCancelledError(message)
        case RetryLater():
            message = "the request failed, and it is too soon to try it again"
            return RetryLaterError(message, refused.seconds)
        case Expired():
            message = "the request with this key was carried out; its response has expired"
            return KeyExpiredError(message)
