"""Dependencies of handlers: their application's ``Durable``, and the context of the request.

They are plain functions: call them with the request, or name them in FastAPI's ``Depends``.
"""

from __future__ import annotations

from starlette.requests import HTTPConnection

from asgi_durable import Durable, DurableUsageError, RequestContext
from asgi_durable.context import current_request

__all__ = ["STATE_NAME", "current_durable", "current_request_context"]

# The attribute of an application's state for its ``Durable``.
STATE_NAME = "asgi_durable"


def current_durable(connection: HTTPConnection) -> Durable:
    """Return the instance that is installed in the application of a request or WebSocket.

    Raises:
        DurableUsageError: No instance is installed.
    """
    durable = getattr(connection.app.state, STATE_NAME, None)
    if not isinstance(durable, Durable):
        msg = "no Durable is installed in this application; call install(app, durable)"
        raise DurableUsageError(msg)
    return durable


def current_request_context() -> RequestContext:
    """Return the context of the current request or WebSocket.

    Raises:
        DurableUsageError: No request is being served, or no ``RequestContextMiddleware`` is
            around it.
    """
    request = current_request.get()
    if request is None:
        msg = "there is no request context here; call install(app, durable)"
        raise DurableUsageError(msg)
    return request
