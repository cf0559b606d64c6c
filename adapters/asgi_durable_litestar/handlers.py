"""The handlers of a route, and the policy of each."""

from __future__ import annotations

from typing import Any

from litestar.routes import BaseRoute

from asgi_durable import IdempotencyPolicy
from asgi_durable.middleware.policies.policy_routes import NOT_COVERED, policy_of

__all__ = ["handler_policy", "handlers_of"]

_OPTION = "idempotency"


def handlers_of(route: BaseRoute) -> list[Any]:
    """Return a route's handlers; one for each method where it is for HTTP."""
    one = getattr(route, "route_handler", None)
    return [one] if one is not None else list(getattr(route, "route_handlers", ()))


def handler_policy(handler: Any) -> IdempotencyPolicy | None:
    """Return the policy of a handler, ``None`` if it has none of its own."""
    if _OPTION in handler.opt:
        return handler.opt[_OPTION] or NOT_COVERED
    # Of the function, or of the handler, where the decorator is above the one that makes it.
    return policy_of(handler.fn) or policy_of(handler)
