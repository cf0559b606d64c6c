"""The policy that a handler is given by a decorator, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from asgi_durable.middleware.idempotency_policy import IdempotencyPolicy
from asgi_durable.middleware.policy_routes import NOT_COVERED

__all__ = ["idempotent", "policy_of"]

_POLICY = "__asgi_durable_policy__"

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])


def idempotent(policy: IdempotencyPolicy | None) -> Callable[[EndpointT], EndpointT]:
    """Give a handler a policy of its own; ``None`` for one that keys have no effect on.

    It goes below the decorator that makes the function a route. A policy by route, of
    ``Durable(idempotency_routes=...)``, counts before it.
    """

    def decorate(endpoint: EndpointT) -> EndpointT:
        setattr(endpoint, _POLICY, policy or NOT_COVERED)
        return endpoint

    return decorate


def policy_of(endpoint: object) -> IdempotencyPolicy | None:
    """Return the policy that a handler was given, ``None`` if it was given none."""
    return getattr(endpoint, _POLICY, None)
