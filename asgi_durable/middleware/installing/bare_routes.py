"""Refuses routes that call the bare function below a durable one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from asgi_durable.engine.process.registry import Registry
from asgi_durable.errors import DurableUsageError
from asgi_durable.middleware.installing.placement import parts_within

__all__ = ["refuse_bare_routes"]

logger = logging.getLogger(__name__)


def refuse_bare_routes(registry: Registry, *parts: Any) -> None:
    """Refuse an application in which a route was made of a function before it was durable.

    Decorators in the wrong order cause this: the durable function replaces the bare one by name,
    but the route below has the bare one, and nothing that it does is durable.

    Args:
        registry: The registry of the durable functions.
        parts: The application, or parts of it: routers, routes, handlers.

    Raises:
        DurableUsageError: A route calls a bare function; the message names both.
    """
    try:
        found = list(_bare_routes(registry, *parts))
    except Exception:
        # An application that cannot be inspected starts all the same.
        logger.debug("The application cannot be inspected", exc_info=True)
        return
    if found:
        raise DurableUsageError(_message(*found[0]))


def _bare_routes(registry: Registry, *parts: Any) -> Iterator[tuple[Any, str]]:
    for part in parts_within(*parts):
        for function in _functions_of(part):
            name = registry.bare(function)
            if name is not None:
                yield part, name


def _functions_of(part: Any) -> Iterator[Any]:
    """Yield the functions that a route of Starlette, or a handler of Litestar, calls."""
    function = vars(part).get("endpoint") if hasattr(part, "__dict__") else None
    yield function if function is not None else getattr(part, "fn", None)
    # Litestar wraps a function that runs in a thread.
    yield getattr(getattr(part, "fn", None), "func", None)


def _message(route: Any, name: str) -> str:
    methods = " ".join(sorted(getattr(route, "methods", None) or ()))
    paths = getattr(route, "path", None) or ", ".join(sorted(getattr(route, "paths", ())))
    kind, _, function = name.partition(" ")
    where = " ".join(filter(None, (methods, str(paths))))
    return (
        f"the route {where} calls the bare function of {name}, so nothing it does is durable: put "
        f"the decorator of the route above @durable.{kind}. If the route is meant to call it "
        f"without, give it a function of its own that calls that of {function}"
    )
