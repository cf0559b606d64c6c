"""The handlers of an application: their policies, and the parameters that Litestar fills in."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

from litestar.routes import BaseRoute

from asgi_durable import IdempotencyPolicy
from asgi_durable.middleware.policies.policy_routes import NOT_COVERED, policy_of
from asgi_durable.verbs.decorators import DEFINITION_ATTRIBUTE

__all__ = ["FilledParameters", "handler_policy", "handlers_of"]

_OPTION = "idempotency"
# Names of parameters that Litestar fills from the connection, or that may hold secrets.
_OF_THE_CONNECTION = frozenset({"cookies", "headers", "request", "scope", "socket", "state"})


def handlers_of(route: BaseRoute) -> list[Any]:
    """Return a route's handlers; one for each method where the route is for HTTP."""
    one = getattr(route, "route_handler", None)
    return [one] if one is not None else list(getattr(route, "route_handlers", ()))


def handler_policy(handler: Any) -> IdempotencyPolicy | None:
    """Return the policy of a handler, ``None`` if it has none of its own."""
    if _OPTION in handler.opt:
        return handler.opt[_OPTION] or NOT_COVERED
    # The decorator may be below the one that makes the handler, or above it.
    return policy_of(handler.fn) or policy_of(handler)


class FilledParameters:
    """The parameters of durable handlers that Litestar fills anew for every request."""

    def __init__(self) -> None:
        # By identity: another function may have a parameter that is equal.
        self._filled: dict[int, inspect.Parameter] = {}

    def add(self, handler: Any) -> None:
        """Add the parameters of a handler, if it is a durable function."""
        definition = getattr(handler.fn, DEFINITION_ATTRIBUTE, None)
        if definition is None:
            return
        names = _OF_THE_CONNECTION.union(handler.resolve_dependencies())
        parameters = list(definition.signature.parameters.values())
        for position, parameter in enumerate(parameters):
            is_self = position == 0 and isinstance(handler.fn, MethodType)
            if is_self or parameter.name in names:
                self._filled[id(parameter)] = parameter

    def is_filled(self, parameter: inspect.Parameter, _hint: object) -> bool:
        """Tell whether a parameter is one of them."""
        return id(parameter) in self._filled
