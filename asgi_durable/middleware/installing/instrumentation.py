"""OpenTelemetry's own instrumentation of an application, found in its stack of middlewares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["excludes", "instrumentations"]

# By name, as the library does not depend on it; classes that are made from it count as well.
_CLASS = "opentelemetry.instrumentation.asgi.OpenTelemetryMiddleware"
# An object may make up what it has inside, without an end.
_MAX_DEPTH = 1000


def instrumentations(stack: Any) -> Iterator[Any]:
    """Return the middlewares of OpenTelemetry in a stack, the outermost first.

    It is followed as far as each middleware has what it calls as ``app``.
    """
    for _ in range(_MAX_DEPTH):
        if stack is None:
            return
        if any(f"{kind.__module__}.{kind.__qualname__}" == _CLASS for kind in type(stack).__mro__):
            yield stack
        stack = getattr(stack, "app", None)


def excludes(instrumentation: Any, url: str) -> bool:
    """Tell whether an instrumentation is not to look at a URL."""
    excluded = getattr(instrumentation, "excluded_urls", None)
    is_disabled = getattr(excluded, "url_disabled", None)
    return is_disabled is not None and bool(is_disabled(url))
