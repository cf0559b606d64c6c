"""Limits of request bodies, of Starlette's and of FastAPI's own."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from starlette.types import Receive, Scope, Send

__all__ = ["lift_limit"]

_MODULE = "starlette.middleware.body_limit"
# Earlier versions have no limits.
_limits: Any = importlib.import_module(_MODULE) if importlib.util.find_spec(_MODULE) else None


async def lift_limit(scope: Scope, receive: Receive, send: Send) -> None:
    """Let an answer pass that is sent before the request's route is known.

    The application's limit refuses it otherwise where ``Content-Length`` is above it, although the
    route may have a larger one. That is set as a route does it: by a limit inside of the other.
    """
    limit = scope.get(_limits.MAX_BODY_SIZE_SCOPE_KEY) if _limits is not None else None
    if limit is None:
        return
    lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    if lengths and lengths[0].isdigit() and int(lengths[0][:19]) > limit:
        inner = _limits.RequestBodyLimitMiddleware(_do_nothing, int(lengths[0][:19]))
        await inner(scope, receive, send)


async def _do_nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer nothing: entering the limit is what counts."""
