"""The handlers of a route, and the policy of each."""

from __future__ import annotations

from typing import Any

from litestar.routes import BaseRoute

from asgi_durable import IdempotencyPolicy
from asgi_durable.middleware.handler_policy import policy_of
from asgi_durable.middleware.policy_routes import NOT_COVERED
from asgi_durable.middleware.principal import ApiKeys

__all__ = ["HandlerPolicies", "handler_policy", "handlers_of"]

_OPTION = "idempotency"


class HandlerPolicies:
    """Finds what is said of keys for the handler that a request was routed to."""

    def __call__(self, scope: Any) -> IdempotencyPolicy | None:
        """Return its policy, ``None`` if it has none of its own."""
        return handler_policy(scope["route_handler"])

    def api_keys(self, scope: Any) -> ApiKeys:
        """Return the API keys that clients send, by the application's OpenAPI configuration."""
        components = getattr(scope["app"].openapi_config, "components", None)
        places: dict[str, set[str]] = {}
        for part in components if isinstance(components, list) else [components]:
            for scheme in (getattr(part, "security_schemes", None) or {}).values():
                if getattr(scheme, "type", None) == "apiKey" and scheme.name:
                    places.setdefault(scheme.security_scheme_in or "header", set()).add(scheme.name)
        return ApiKeys.at(places)


def handlers_of(route: BaseRoute) -> list[Any]:
    """Return a route's handlers; one for each method where it is for HTTP."""
    one = getattr(route, "route_handler", None)
    return [one] if one is not None else list(getattr(route, "route_handlers", ()))


def handler_policy(handler: Any) -> IdempotencyPolicy | None:
    """Return the policy of a handler, ``None`` if it has none of its own."""
    if _OPTION in handler.opt:
        return handler.opt[_OPTION] or NOT_COVERED
    return policy_of(handler.fn)
