"""Finds the policy of a request: its route's, its handler's, or the application's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.routing import compile_path

from asgi_durable.errors import DurableError, DurableUsageError
from asgi_durable.middleware.asgi import Scope, route_path
from asgi_durable.middleware.keys.key_sources import ParameterFinder, PathKey
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.request_errors import PolicyFailedError

__all__ = ["NOT_COVERED", "PolicyFinder", "PolicyRoutes", "RouterView", "idempotent", "policy_of"]

# Returns the policy of the handler that a framework will call, ``None`` if it has none of its own.
PolicyFinder = Callable[[Scope], IdempotencyPolicy | None]

NOT_COVERED = IdempotencyPolicy(methods=frozenset())

_ROUTE = re.compile(r"(?:([A-Z]+) +)?(/\S*)")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class _Route:
    method: str | None
    path: re.Pattern[str]
    policy: IdempotencyPolicy


@dataclass(frozen=True, slots=True)
class RouterView:
    """Functions by which a framework finds the handler that a request will be routed to.

    Attributes:
        find_policy: Returns the handler's own policy.
        find_parameters: Returns the parameters in the handler's path, by name.
        merges_slashes: True where ``/a``, ``/a/`` and ``//a`` lead to one handler, so that
            requests to them are the same.
    """

    find_policy: PolicyFinder | None
    find_parameters: ParameterFinder | None = None
    merges_slashes: bool = False


class PolicyRoutes:
    """Finds the policy of a request.

    Args:
        default: The policy of requests that no route fits.
        routes: Policies by ``"POST /orders/{order_id}"`` or, for all methods of the policy,
            by ``"/orders/{rest:path}"``; the first that fits counts. ``None`` for a route that
            keys have no effect on.
        router: Finds the handler's policy, which counts where no route fits.

    Attributes:
        methods: The HTTP methods that any policy may cover.
        merges_slashes: See :class:`RouterView`.

    Raises:
        DurableUsageError: A route is malformed, or has no parameter of the name that its
            policy's key refers to.
    """

    def __init__(
        self,
        default: IdempotencyPolicy,
        routes: Mapping[str, IdempotencyPolicy | None],
        router: PolicyFinder | RouterView | None,
    ) -> None:
        self._default = default
        self._routes = [_read(route, policy) for route, policy in routes.items()]
        view = router if isinstance(router, RouterView) else RouterView(router)
        self._find = view.find_policy
        self._find_parameters = view.find_parameters
        self.merges_slashes = view.merges_slashes
        if router is None:
            self._refuse_unknown_parameters()
        self._is_one_for_all = not self._routes and self._find is None
        self.methods = default.methods.union(*(route.policy.methods for route in self._routes))
        if self._find is not None:
            self.methods |= _CHANGING

    def find(self, scope: Scope) -> IdempotencyPolicy | None:
        """Return the policy of a request, ``None`` if none covers its method.

        Raises:
            PolicyFailedError: The router's ``find_policy`` failed.
        """
        policy = self._default
        if not self._is_one_for_all:
            policy = self._of_route(scope) or self._of_handler(scope) or policy
        return policy if scope["method"] in policy.methods else None

    def parameters(self, scope: Scope) -> Mapping[str, Any]:
        """Return the parameters of a request's path: those of its handler, and of its route.

        Raises:
            PolicyFailedError: The router's ``find_parameters`` failed.
        """
        try:
            found = self._find_parameters(scope) if self._find_parameters is not None else {}
        except Exception as error:
            raise PolicyFailedError.of(error, "find_parameters") from error
        method, path = scope["method"], route_path(scope)
        for route in self._routes:
            fits = route.path.fullmatch(path) if route.method in (None, method) else None
            if fits is not None and method in route.policy.methods:
                return {**found, **fits.groupdict()}
        return found

    def _refuse_unknown_parameters(self) -> None:
        """Refuse a key in a parameter that no route has, as no request would ever have a key."""
        patterns = [(route.policy, route.path.groupindex) for route in self._routes]
        for policy, names in [(self._default, {}), *patterns]:
            source = policy.key_source
            if isinstance(source, PathKey) and source.parameter not in names:
                msg = (
                    f"key='{{{source.parameter}}}' is a parameter of the path: name it in a route, "
                    "for example "
                    f"idempotency_routes={{'POST /hooks/{{{source.parameter}}}': policy}}"
                )
                raise DurableUsageError(msg)

    def _of_route(self, scope: Scope) -> IdempotencyPolicy | None:
        method, path = scope["method"], route_path(scope)
        found = None
        for route in self._routes:
            if route.method in (None, method) and route.path.fullmatch(path):
                if route.policy is NOT_COVERED or method in route.policy.methods:
                    return route.policy
                # Another route for this path may cover the method; the default does not.
                found = NOT_COVERED
        return found

    def _of_handler(self, scope: Scope) -> IdempotencyPolicy | None:
        try:
            return self._find(scope) if self._find is not None else None
        except DurableError:
            raise
        except Exception as error:
            raise PolicyFailedError.of(error, "find_policy") from error


def _read(route: str, policy: IdempotencyPolicy | None) -> _Route:
    found = _ROUTE.fullmatch(route)
    if found is None:
        msg = f"a route is a path, or a method and a path, as in 'POST /orders', got {route!r}"
        raise DurableUsageError(msg)
    method, path = found[1], found[2]
    if policy is not None and method is not None:
        policy = replace(policy, methods=frozenset({method}))
    return _Route(method, _pattern(path), policy or NOT_COVERED)


def _pattern(path: str) -> re.Pattern[str]:
    literal = _PARAMETER.sub("", path)
    if "{" in literal or "}" in literal:
        msg = f"the path {path!r} has a parameter that is not {{name}} or {{name:path}}"
        raise DurableUsageError(msg)
    try:
        regex, _, _ = compile_path(path)
    except ValueError as error:
        msg = f"the path {path!r} names a parameter twice"
        raise DurableUsageError(msg) from error
    # A path may have an escaped line break, which a `{name:path}` has to match.
    return re.compile(regex.pattern, re.DOTALL)


_POLICY = "__asgi_durable_policy__"

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])


def idempotent(policy: IdempotencyPolicy | None) -> Callable[[EndpointT], EndpointT]:
    """Give a handler a policy of its own; with ``None`` keys have no effect on it.

    The decorator goes below the one that makes the function a route. A policy by route, of
    ``Durable(idempotency_routes=...)``, counts before it.

    Example::

        @app.post("/payments")
        @idempotent(IdempotencyPolicy(required=True))
        async def pay(payment: Payment) -> Receipt: ...
    """

    def decorate(endpoint: EndpointT) -> EndpointT:
        setattr(endpoint, _POLICY, policy or NOT_COVERED)
        return endpoint

    return decorate


def policy_of(endpoint: object) -> IdempotencyPolicy | None:
    """Return the policy that :func:`idempotent` has set for a handler, ``None`` for none."""
    return getattr(endpoint, _POLICY, None)
