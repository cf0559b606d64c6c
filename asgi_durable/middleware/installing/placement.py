"""Looks into applications, and warns of middlewares in the wrong place.

Authentication, CORS and other checks belong around the idempotency middleware.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from asgi_durable.middleware.policies.policy import IdempotencyPolicy

__all__ = [
    "class_of",
    "classes_within",
    "is_authentication",
    "is_one_of",
    "is_session",
    "parts_within",
    "warn_of_misplaced",
]

logger = logging.getLogger(__name__)

# By full name, as the core loads no framework. Subclasses count as well.
_AUTHENTICATION = frozenset(
    {
        "litestar.middleware.authentication.AbstractAuthenticationMiddleware",
        "litestar.security.session_auth.middleware.MiddlewareWrapper",
        "starlette.middleware.authentication.AuthenticationMiddleware",
    }
)
_SESSIONS = frozenset(
    {
        "litestar.middleware.session.base.SessionMiddleware",
        "starlette.middleware.sessions.SessionMiddleware",
    }
)
_CORS = frozenset(
    {
        "litestar.config.cors.CORSConfig",
        "starlette.middleware.cors.CORSMiddleware",
    }
)
# Checks that a first request has to pass, and that a replay would skip.
_GATES = frozenset(
    {
        "litestar.config.allowed_hosts.AllowedHostsConfig",
        "litestar.config.csrf.CSRFConfig",
        "starlette.middleware.httpsredirect.HTTPSRedirectMiddleware",
        "starlette.middleware.trustedhost.TrustedHostMiddleware",
        "starlette_csrf.middleware.CSRFMiddleware",
    }
)
# Attributes of applications, routers, routes and middlewares for the object that they call.
# FastAPI represents an included router as one route.
_INNER = ("app", "router", "middleware_stack", "original_router")
# An object with dynamic attributes may be nested without an end.
_MAX_PARTS = 10_000

_OF_AUTHENTICATION = (
    "The authentication %s is inside of the idempotency middleware: a replay is sent before it "
    "runs, and its user is not known where keys are looked up: clients who send a cookie and "
    "no Authorization are refused. Add it to the application in which install() or DurablePlugin "
    "is, or put it around durable.wrap(app); or identify the sender of a request by "
    "IdempotencyPolicy(principal=...) or IdempotencyPolicy(session_cookie=...)."
)
_OF_CORS = (
    "The CORS middleware %s is inside of the idempotency middleware: browsers cannot read the "
    "library's own responses (for example 409 and 422), and a replay has the CORS headers "
    "of the first request. Add it to the application in which install() or DurablePlugin is, or "
    "put it around durable.wrap(app)."
)
_OF_GATE = (
    "The check %s is inside of the idempotency middleware: a replay is sent before it runs. Add it "
    "to the application in which install() or DurablePlugin is, or put it around "
    "durable.wrap(app)."
)


def warn_of_misplaced(
    policies: Callable[[], Iterable[IdempotencyPolicy]], inside: Callable[[], Iterable[type]]
) -> None:
    """Log a warning for authentication, CORS and other checks inside the idempotency middleware.

    There is none about authentication where every policy identifies senders by itself, and none
    at all where keys have no effect.

    Args:
        policies: Returns the policies that requests may have.
        inside: Returns the classes of the middlewares and routes inside.
    """
    try:
        covering = [policy for policy in policies() if policy.methods]
        classes = list(inside()) if covering else []
    except Exception:
        # The log line is only advice: an application that cannot be inspected starts all the same.
        logger.debug("The application cannot be inspected", exc_info=True)
        return
    is_shared = any(p.principal is None and p.session_cookie is None for p in covering)
    found = next((kind for kind in classes if is_one_of(kind, _AUTHENTICATION)), None)
    if found is not None and is_shared:
        logger.warning(_OF_AUTHENTICATION, found.__qualname__)
    found = next((kind for kind in classes if is_one_of(kind, _CORS)), None)
    if found is not None:
        logger.warning(_OF_CORS, found.__qualname__)
    gates = {kind.__qualname__: None for kind in classes if is_one_of(kind, _GATES)}
    for name in gates:
        logger.warning(_OF_GATE, name)


def classes_within(*parts: Any) -> Iterator[type]:
    """Return the classes of parts of an application, and of the parts inside them."""
    return map(class_of, parts_within(*parts))


def parts_within(*parts: Any) -> Iterator[Any]:
    """Yield parts of an application, and the parts inside them, each once.

    It follows applications, routers and routes of Starlette and Litestar, and middlewares that
    have the app they wrap as ``app``. Other objects cannot be inspected.
    """
    # References to the parts, as an id is only unique while its object lives.
    pending, seen = list(parts), dict[int, Any]()
    while pending and len(seen) < _MAX_PARTS:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen[id(part)] = part
        yield part
        pending += _entries_of(part)
        if not isinstance(part, type):
            pending += [getattr(part, name, None) for name in _INNER]


def class_of(entry: Any) -> type:
    """Return the class of a middleware, from any entry in an application's list of middlewares."""
    for found in (entry, getattr(entry, "cls", None), getattr(entry, "middleware", None)):
        if isinstance(found, type):
            return found
    return type(entry)


def _entries_of(part: Any) -> Iterator[Any]:
    """Yield the entries of a part's lists: middlewares, routes and handlers."""
    for name in ("user_middleware", "routes", "route_handlers"):
        entries = getattr(part, name, None)
        if isinstance(entries, list | tuple):
            yield from entries
    # Litestar's: a route's only handler, the settings, and a handler's middlewares.
    yield getattr(part, "route_handler", None)
    for name in ("cors_config", "csrf_config", "allowed_hosts"):
        yield getattr(part, name, None)
    if hasattr(part, "ownership_layers"):
        yield from part.resolve_middleware()


def is_authentication(kind: type) -> bool:
    """Tell whether a class is a framework's middleware that authenticates requests."""
    return is_one_of(kind, _AUTHENTICATION)


def is_session(kind: type) -> bool:
    """Tell whether a class is a framework's middleware for sessions."""
    return is_one_of(kind, _SESSIONS)


def is_one_of(kind: type, names: frozenset[str]) -> bool:
    """Tell whether a class or one of its bases has one of these full names."""
    return any(f"{base.__module__}.{base.__qualname__}" in names for base in kind.__mro__)
