"""Finds the policy of a request's handler before the request is routed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.routing import compile_path

from asgi_durable import IdempotencyPolicy
from asgi_durable.middleware.asgi import route_path
from asgi_durable.middleware.policies.policy_routes import policy_of

__all__ = ["HandlerPolicies"]


@dataclass(frozen=True, slots=True)
class _Handler:
    route: str
    path: re.Pattern[str]
    methods: frozenset[str] | None
    policy: IdempotencyPolicy | None


class HandlerPolicies:
    """Finds the policy of the handler that a request will be routed to.

    The routes are read at the first request.

    Args:
        app: The application that has the handlers.
        flatten: Returns routes together with those of included routers.
    """

    def __init__(self, app: Starlette, flatten: Callable[[Sequence[Any]], Iterable[Any]]) -> None:
        self._app = app
        self._flatten = flatten
        self._handlers: list[_Handler] | None = None
        self._has_policies = False

    def __call__(self, scope: MutableMapping[str, Any]) -> IdempotencyPolicy | None:
        """Return the policy, ``None`` if the handler has none of its own."""
        handlers = self._known_handlers()
        handler = _handler_of(scope, handlers) if self._has_policies else None
        return handler.policy if handler is not None else None

    def find_route(self, scope: MutableMapping[str, Any]) -> str | None:
        """Return the route of a request where no router has put it into the scope.

        No router has seen a replay, and routers of older versions do not state the route.
        ``None`` if no route fits.
        """
        if "router" in scope and "endpoint" not in scope:
            return None
        # A mount has appended its own path to that of the application.
        root_path = str(scope.get("app_root_path", scope.get("root_path", "")))
        outer_scope = {"method": scope["method"], "path": scope["path"], "root_path": root_path}
        handler = _handler_of(outer_scope, self._known_handlers())
        return root_path + handler.route if handler is not None else None

    def _known_handlers(self) -> list[_Handler]:
        if self._handlers is None:
            self._handlers = self._all_handlers()
            self._has_policies = any(handler.policy is not None for handler in self._handlers)
        return self._handlers

    def parameters(self, scope: MutableMapping[str, Any]) -> dict[str, str]:
        """Return the parameters in the path of the handler that a request will be routed to."""
        handler = _handler_of(scope, self._known_handlers())
        found = handler.path.match(route_path(scope)) if handler is not None else None
        return found.groupdict() if found is not None else {}

    def policies(self) -> Iterator[IdempotencyPolicy]:
        """Return the policies that handlers have at this time."""
        policies = (handler.policy for handler in self._all_handlers())
        return (policy for policy in policies if policy is not None)

    def _all_handlers(self) -> list[_Handler]:
        return list(self._handlers_of(self._app.routes, ""))

    def _handlers_of(self, routes: Sequence[Any], prefix: str) -> Iterator[_Handler]:
        for route in self._flatten(routes):
            path = getattr(route, "path", "")
            inner = getattr(route, "routes", None)
            if inner:
                yield from self._handlers_of(inner, prefix + path)
            elif (endpoint := getattr(route, "endpoint", None)) is not None:
                methods = getattr(route, "methods", None)
                regex, route_format, _ = compile_path(prefix + path)
                yield _Handler(
                    route=route_format,
                    path=regex,
                    methods=frozenset(methods) if methods else None,
                    policy=policy_of(endpoint),
                )


def _handler_of(scope: MutableMapping[str, Any], handlers: list[_Handler]) -> _Handler | None:
    """Return the first handler whose method and path fit a request."""
    path = route_path(scope)
    for handler in handlers:
        is_for_method = handler.methods is None or scope["method"] in handler.methods
        if is_for_method and handler.path.match(path):
            return handler
    return None
