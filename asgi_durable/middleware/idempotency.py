"""Requests with an ``Idempotency-Key``: one execution, one answer, resumed by any retry.

A request with a key is a workflow. Its id is made of the key and of whose key it is; its
outcome is the answer. A retry finds it finished and is answered the same, or running and is
asked to come back, or interrupted and goes on after what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from asgi_durable.engine.request_servers import RequestServers
from asgi_durable.engine.requests import Requests
from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import ASGIApp, Receive, Scope, Send, make_rereadable
from asgi_durable.middleware.fingerprint import idempotency_key, principal_of
from asgi_durable.middleware.idempotency_policy import IdempotencyPolicy
from asgi_durable.middleware.keyed_request import KeyedRequest
from asgi_durable.middleware.policy_routes import PolicyFinder, PolicyRoutes
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.request_attempt import Connection
from asgi_durable.middleware.request_body import ClientGoneError, end_for_nobody
from asgi_durable.middleware.request_server import ServingApp
from asgi_durable.middleware.request_status import StatusPages
from asgi_durable.request_errors import KeyMalformedError, KeyMissingError, PolicyFailedError

__all__ = ["IdempotencyMiddleware"]


class RequestSource(Protocol):
    """Claims requests; an :class:`~asgi_durable.engine.engine.Engine`."""

    @property
    def requests(self) -> Requests:
        """Workflows that are requests."""

    @property
    def request_servers(self) -> RequestServers:
        """Who in this process can serve requests without their clients."""

    @property
    def is_in_request(self) -> bool:
        """True where a claimed request is being handled."""


class IdempotencyMiddleware:
    """Make requests that carry an ``Idempotency-Key`` durable; leave all others alone.

    Args:
        app: The ASGI app to wrap.
        engine: What keeps the requests.
        policy: Which requests are covered, and within which limits. The pages of a request's
            status are where this one has them, for its principals, whatever a route's says.
        routes: Other policies by route, ``"POST /orders/{order_id}"`` say, or
            ``"/hooks/{rest:path}"``; the first that fits counts. ``None`` for a route that keys
            have no effect on.
        find_policy: Returns the policy of the handler that a scope leads to, where no route
            fits; ``None`` for the one above.

    Raises:
        DurableUsageError: A route cannot be read.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: RequestSource,
        *,
        policy: IdempotencyPolicy | None = None,
        routes: Mapping[str, IdempotencyPolicy | None] | None = None,
        find_policy: PolicyFinder | None = None,
    ) -> None:
        self.app = app
        self.engine = engine
        self.policy = policy or IdempotencyPolicy()
        self._policies = PolicyRoutes(self.policy, routes or {}, find_policy)
        prefix = self.policy.status_prefix
        self._serving = ServingApp(app, self._policies)
        self._pages = (
            StatusPages(prefix, may_cancel=self.policy.client_may_cancel)
            if prefix is not None
            else None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        # A stack inside another one, as of a mounted application, leaves the request to it.
        if scope["type"] != "http" or self.engine.is_in_request:
            await self._pass(scope, receive, send)
            return
        make_rereadable(scope)
        if scope["method"] in self._policies.methods and not self._is_cancellation(scope):
            try:
                policy = self._policies.find(scope)
            except DurableError as error:
                await send_problem(send, error)
                return
            if policy is None or not (policy.required or _has_header(scope, policy.header)):
                await self.app(scope, receive, send)
            else:
                await self._serve_covered(scope, receive, send, policy)
        elif self._pages is None or (page := self._pages.find(scope)) is None:
            await self.app(scope, receive, send)
        else:
            try:
                principal = principal_of(scope, self.policy.principal, self.policy.session_cookie)
                await self._pages.serve(scope, send, page, principal, self.engine.requests)
            except DurableError as error:
                await send_problem(send, error)

    def _is_cancellation(self, scope: Scope) -> bool:
        """Tell whether a request is for a page, where keys have an effect on its method too."""
        method: str = scope["method"]
        return method == "DELETE" and self._pages is not None and bool(self._pages.find(scope))

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._serving.live(scope, receive, send, self.engine.request_servers)
        else:
            await self.app(scope, receive, send)

    async def _serve_covered(
        self, scope: Scope, receive: Receive, send: Send, policy: IdempotencyPolicy
    ) -> None:
        try:
            key = _checked_key(scope, policy)
            requests = self.engine.requests
        except DurableError as error:
            await send_problem(send, policy.restated(error), headers=policy.links)
            return
        if policy.recover == "server" and not self._serving.is_started:
            # No process could call the app that has not seen its lifespan.
            policy = replace(policy, recover="client")
        connection = Connection(scope, receive, send)
        request = KeyedRequest(self.app, requests, policy, self._pages, connection)
        try:
            await request.serve(key)
        except ClientGoneError:
            await end_for_nobody(send)


def _has_header(scope: Scope, name: bytes) -> bool:
    return name in [key.lower() for key, _ in scope["headers"]]


def _checked_key(scope: Scope, policy: IdempotencyPolicy) -> bytes:
    """Return the request's key.

    Raises:
        IdempotencyError: It has none, or none that is accepted.
    """
    key = idempotency_key(scope, policy.header)
    if key is None:
        msg = f"this request needs the header {policy.header_name}"
        raise KeyMissingError(msg)
    if policy.validate_key is not None and not _is_valid(key, policy.validate_key):
        msg = "this key is not accepted here"
        raise KeyMalformedError(msg)
    return key


def _is_valid(key: bytes, validate_key: Callable[[str], bool]) -> bool:
    try:
        return validate_key(key.decode("ascii"))
    except DurableError:
        raise
    except Exception as error:
        raise PolicyFailedError.of(error, "validate_key") from error
