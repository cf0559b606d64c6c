"""Starlette's and FastAPI's own limits of request bodies."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from asgi_durable.middleware.asgi import Receive, Scope, Send, header_values

__all__ = ["lift_limit"]

_MODULE = "starlette.middleware.body_limit"
# Earlier versions of Starlette have no limits.
_limits: Any = importlib.import_module(_MODULE) if importlib.util.find_spec(_MODULE) else None


async def lift_limit(scope: Scope, receive: Receive, send: Send) -> None:
    """Let a response pass that is sent before the request's route is known.

    The application's limit refuses the response where ``Content-Length`` is above it, although
    the route may have a higher limit. A second limit inside the first raises it, as in a route.
    """
    limit = scope.get(_limits.MAX_BODY_SIZE_SCOPE_KEY) if _limits is not None else None
    if limit is None:
        return
    lengths = header_values(scope["headers"], b"content-length")
    if lengths and lengths[0].isdigit() and int(lengths[0][:19]) > limit:
        inner = _limits.RequestBodyLimitMiddleware(_do_nothing, int(lengths[0][:19]))
        await inner(scope, receive, send)


async def _do_nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Send nothing: the limit counts once the request has entered it."""
