"""What an application has inside of the idempotency middleware that belongs outside."""

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

# By full name, as the core knows no framework; classes that are made from them count as well.
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
# What a first request must pass, and a replay would not.
_GATES = frozenset(
    {
        "litestar.config.allowed_hosts.AllowedHostsConfig",
        "litestar.config.csrf.CSRFConfig",
        "starlette.middleware.httpsredirect.HTTPSRedirectMiddleware",
        "starlette.middleware.trustedhost.TrustedHostMiddleware",
        "starlette_csrf.middleware.CSRFMiddleware",
    }
)
# Where an application, a router, a route or a middleware has what it calls; FastAPI keeps an
# included router as one route.
_INNER = ("app", "router", "middleware_stack", "original_router")
# An object may make up what it has inside, without an end.
_MAX_PARTS = 10_000

_OF_AUTHENTICATION = (
    "The authentication %s is inside of the idempotency middleware: a replay is sent before it "
    "runs, and whom it finds is not known where keys are looked up: clients who send a cookie and "
    "no Authorization are refused. Add it to the application in which install() or DurablePlugin "
    "is, or put it around durable.wrap(app); or say whose a request is, by "
    "IdempotencyPolicy(principal=...) or IdempotencyPolicy(session_cookie=...)."
)
_OF_CORS = (
    "The CORS middleware %s is inside of the idempotency middleware: browsers cannot read the "
    "answers that the library gives itself (409 and 422, say), and a replay has the CORS headers "
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
    """Write a line to the log for authentication, CORS, and checks of a request, that are inside.

    Nothing about authentication where every policy says by itself whose a request is; nothing at
    all where keys have no effect.

    Args:
        policies: Returns those that requests may have.
        inside: Returns the classes of what is inside.
    """
    try:
        covering = [policy for policy in policies() if policy.methods]
        classes = list(inside()) if covering else []
    except Exception:
        # It is for advice alone: an application that cannot be looked into starts all the same.
        logger.debug("The application cannot be looked into", exc_info=True)
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
    """Return the classes of parts of an application, and of what is inside them."""
    return map(class_of, parts_within(*parts))


def parts_within(*parts: Any) -> Iterator[Any]:
    """Return parts of an application, and what is inside them, each once.

    It looks into applications, routers and routes of Starlette and Litestar, and into
    middlewares that have what they call as ``app``; of others nothing can be known.
    """
    # Kept as long as they are compared by their ids.
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
    """Return the class of a middleware, however an application's list of them has it."""
    for found in (entry, getattr(entry, "cls", None), getattr(entry, "middleware", None)):
        if isinstance(found, type):
            return found
    return type(entry)


def _entries_of(part: Any) -> Iterator[Any]:
    """Return what a part has lists of: middlewares, routes and handlers."""
    for name in ("user_middleware", "routes", "route_handlers"):
        entries = getattr(part, name, None)
        if isinstance(entries, list | tuple):
            yield from entries
    # Of Litestar's: a route's one handler, what a handler is called through, and settings.
    yield getattr(part, "route_handler", None)
    for name in ("cors_config", "csrf_config", "allowed_hosts"):
        yield getattr(part, name, None)
    if hasattr(part, "ownership_layers"):
        yield from part.resolve_middleware()


def is_authentication(kind: type) -> bool:
    """Tell whether a class is one of a framework's that find out who has sent a request."""
    return is_one_of(kind, _AUTHENTICATION)


def is_session(kind: type) -> bool:
    """Tell whether a class is a middleware that keeps sessions."""
    return is_one_of(kind, _SESSIONS)


def is_one_of(kind: type, names: frozenset[str]) -> bool:
    """Tell whether a class has one of these full names, or is made from one that has."""
    return any(f"{base.__module__}.{base.__qualname__}" in names for base in kind.__mro__)
