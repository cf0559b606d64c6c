"""Requests with an ``Idempotency-Key``: one execution, one response, resumed by any retry.

A request with a key is a workflow. The workflow's id is computed from the key and its sender, and
its outcome is the response. A retry gets the stored response if the request is finished, a request
to come back later if it is running, and resumes it behind its last recorded step if it was
interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from asgi_durable.engine.requests.claims import Requests
from asgi_durable.engine.requests.server_recovery import RequestServers
from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import ASGIApp, Receive, Scope, Send, make_rereadable
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.idempotency.key_finding import FoundKey, find_key
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
from asgi_durable.middleware.responses.headers import IGNORED, adding_headers

__all__ = ["IdempotencyMiddleware"]


class RequestSource(Protocol):
    """The part of :class:`~asgi_durable.engine.engine.Engine` that the middleware needs."""

    @property
    def requests(self) -> Requests:
        """Claims requests, and knows their progress."""

    @property
    def request_servers(self) -> RequestServers:
        """The apps of this process that can serve a request without its client."""


class IdempotencyMiddleware:
    """Make requests that carry an ``Idempotency-Key`` durable; leave all others alone.

    Args:
        app: The ASGI app to wrap.
        engine: The engine that claims the requests.
        policy: The policy of requests without another one. It alone says where the status pages
            are and who may see them, whatever the policies of routes say.
        routes: Other policies by route, for example ``"POST /orders/{order_id}"`` or
            ``"/hooks/{rest:path}"``; the first route that fits counts. ``None`` for a route on
            which keys have no effect.
        find_policy: Returns the policy of the handler that a scope leads to, if no route fits;
            ``None`` for the policy above. Adapters pass a ``RouterView`` instead, which knows
            more about that handler.

    Raises:
        DurableUsageError: A route is malformed, or lacks the parameter that is the key.
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
        if scope["type"] == "lifespan":
            await self._serving.live(scope, receive, send, self.engine.request_servers)
            return
        # A stack inside another one, for example of a mounted application, does nothing.
        if scope["type"] != "http" or is_claimed_by(self.engine, scope):
            await self.app(scope, receive, send)
            return
        make_rereadable(scope)
        method, pages = scope["method"], self._pages
        if pages is not None and method in pages.methods and (page := pages.find(scope)):
            try:
                connection = Connection(scope, receive, send)
                await pages.serve(connection, page, self.policy.senders, self.engine.requests)
            except DurableError as error:
                await send_problem(send, error)
            return
        try:
            policy = self._policies.find(scope) if method in self._policies.methods else None
        except DurableError as error:
            await send_problem(send, error)
            return
        if policy is None or not (policy.required or _may_have_key(scope, policy)):
            await self.app(scope, receive, send)
        else:
            await self._serve_covered(scope, receive, send, policy)

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
        except Exception as error:  # raised around this one, while the body is read
            found = FoundKey(None, RefusedBody(error).receive, is_unknown=True)
        receive = found.receive
        if found.key is None or requests is None:
            # The response says that a key may have been ignored.
            marked = adding_headers(send, [IGNORED]) if found.is_unknown else send
            await self.app(scope, receive, marked)
            return
        if policy.recover == "server" and not self._serving.is_started:
            # The server only resumes requests with an app whose lifespan it has seen.
            policy = replace(policy, recover="client")
        if self._api_keys is None:
            # At the first request, because routes may be added until then.
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


def _may_have_key(scope: Scope, policy: IdempotencyPolicy) -> bool:
    """Tell whether a request may have a key: a key that is in no header has to be searched for."""
    return policy.header is None or policy.header in [name.lower() for name, _ in scope["headers"]]
