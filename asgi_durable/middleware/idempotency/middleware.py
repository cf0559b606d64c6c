"""Requests with an ``Idempotency-Key``: one execution, one answer, resumed by any retry.

A request with a key is a workflow. Its id is made of the key and of whose key it is; its
outcome is the answer. A retry finds it finished and is answered the same, or running and is
asked to come back, or interrupted and goes on after what is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from asgi_durable.engine.requests.claims import Requests
from asgi_durable.engine.requests.request_servers import RequestServers
from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import ASGIApp, Receive, Scope, Send, make_rereadable
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.idempotency.key_finding import FoundKey, find_key, may_have_key
from asgi_durable.middleware.idempotency.keyed_request import KeyedRequest
from asgi_durable.middleware.idempotency.server_recovery import ServingApp
from asgi_durable.middleware.idempotency.status_pages import StatusPages
from asgi_durable.middleware.installing.api_keys import api_keys_within
from asgi_durable.middleware.keys.principal import ApiKeys
from asgi_durable.middleware.nested_requests import (
    ClaimingApp,
    is_claimed_by,
    is_nested_request,
    without_outer_context,
)
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.policies.policy_routes import PolicyFinder, PolicyRoutes, RouterView
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.request_bodies.long_body import RefusedBody
from asgi_durable.middleware.request_bodies.replayed_body import (
    ClientDisconnectedError,
    end_without_client,
)
from asgi_durable.middleware.responses.headers import IGNORED, marking

__all__ = ["IdempotencyMiddleware"]


class RequestSource(Protocol):
    """Claims requests; an :class:`~asgi_durable.engine.engine.Engine`."""

    @property
    def requests(self) -> Requests:
        """Workflows that are requests."""

    @property
    def request_servers(self) -> RequestServers:
        """Who in this process can serve requests without their clients."""


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
            fits; ``None`` for the one above. An adapter gives a ``RouterView`` instead, which
            knows more of that handler.

    Raises:
        DurableUsageError: A route cannot be read, or has not the parameter that is the key.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: RequestSource,
        *,
        policy: IdempotencyPolicy | None = None,
        routes: Mapping[str, IdempotencyPolicy | None] | None = None,
        find_policy: PolicyFinder | RouterView | None = None,
    ) -> None:
        self.app = app
        self.engine = engine
        self.policy = policy or IdempotencyPolicy()
        self._policies = PolicyRoutes(self.policy, routes or {}, find_policy)
        self._api_keys: ApiKeys | None = None
        prefix = self.policy.status_prefix
        self._claiming = ClaimingApp(app, engine)
        self._serving = ServingApp(self._claiming, self._policies)
        self._pages = (
            StatusPages(prefix, may_cancel=self.policy.client_may_cancel)
            if prefix is not None
            else None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if is_nested_request(scope):
            with without_outer_context():
                await self(scope, receive, send)
            return
        # A stack inside another one, as of a mounted application, leaves the request to it.
        if scope["type"] != "http" or is_claimed_by(self.engine, scope):
            await self._pass(scope, receive, send)
            return
        make_rereadable(scope)
        if scope["method"] in self._policies.methods and not self._is_cancellation(scope):
            try:
                policy = self._policies.find(scope)
            except DurableError as error:
                await send_problem(send, error)
                return
            if policy is None or not (policy.required or may_have_key(scope, policy)):
                await self.app(scope, receive, send)
            else:
                await self._serve_covered(scope, receive, send, policy)
        elif self._pages is None or (page := self._pages.find(scope)) is None:
            await self.app(scope, receive, send)
        else:
            try:
                connection = Connection(scope, receive, send)
                await self._pages.serve(connection, page, self.policy.senders, self.engine.requests)
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
            found = await find_key(scope, receive, policy, self._policies.parameters)
            requests = self.engine.requests if found.key is not None else None
        except ClientDisconnectedError:
            await end_without_client(send)
            return
        except DurableError as error:
            await send_problem(send, policy.with_own_status(error), headers=policy.links)
            return
        except Exception as error:  # of a middleware around this one, while the body is read
            found = FoundKey(None, RefusedBody(error).receive, is_unknown=True)
        receive = found.receive
        if found.key is None or requests is None:
            # Not silently where it may have had a key.
            marked = marking(send, [IGNORED]) if found.is_unknown else send
            await self.app(scope, receive, marked)
            return
        if policy.recover == "server" and not self._serving.is_started:
            # No process could call the app that has not seen its lifespan.
            policy = replace(policy, recover="client")
        if self._api_keys is None:
            # Now: routes may be added up to the first request.
            self._api_keys = api_keys_within(self.app, scope.get("app"))
        connection = Connection(
            scope,
            receive,
            send,
            api_keys=self._api_keys,
            merges_slashes=self._policies.merges_slashes,
        )
        request = KeyedRequest(self._claiming, requests, policy, self._pages, connection)
        try:
            await request.serve(found.key)
        except ClientDisconnectedError:
            await end_without_client(send)
