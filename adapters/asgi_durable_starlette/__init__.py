"""Starlette adapter: one call installs the stack, in the right places, whatever the order.

The request context and the lifespan go around everything, the server's own error page
included; idempotency goes inside the application's middlewares, so that authentication and
CORS run first.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketState

from asgi_durable import (
    Durable,
    DurableError,
    DurableUsageError,
    IdempotencyMiddleware,
)
from asgi_durable.engine.process.parameters import filled_with
from asgi_durable.middleware.installing.bare_routes import refuse_bare_routes
from asgi_durable.middleware.installing.placement import class_of, classes_within
from asgi_durable.middleware.policies.policy_routes import RouterView, idempotent
from asgi_durable.middleware.problem_details import problem_response
from asgi_durable.middleware.request_bodies.body_source import ReadAheadMiddleware
from asgi_durable_starlette.body_limits import lift_limit
from asgi_durable_starlette.dependencies import (
    STATE_NAME,
    current_durable,
    current_request_context,
)
from asgi_durable_starlette.handler_policies import HandlerPolicies
from asgi_durable_starlette.outer_stack import wrap_stack

__all__ = ["current_durable", "current_request_context", "idempotent", "install"]

_CONNECTING = WebSocketState.CONNECTING
_INTERNAL_ERROR = 1011  # RFC 6455, section 7.4.1
_is_injected = filled_with(HTTPConnection, Response, BackgroundTask)
_shapes_response = filled_with(Response, BackgroundTask)


def install(
    app: Starlette,
    durable: Durable,
    *,
    flatten: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> None:
    """Make an application's requests durable.

    Routes and middlewares may be added before or after, and the application keeps its own
    ``lifespan``. Parameters that the framework fills anew for each request (``Request``,
    ``Response``, ``BackgroundTasks``) are not recorded.

    Args:
        app: The application.
        durable: The instance that records its requests.
        flatten: For adapters of frameworks on top of Starlette: returns routes together with
            those of included routers.

    Raises:
        DurableUsageError: The application has been started, or has a ``Durable`` already; or a
            route calls the bare function below a durable one. For routes that are added later
            the application's start raises this.

    Example:
        ``install(app, Durable("sqlite:///shop.db"))``
    """
    if app.middleware_stack is not None:
        msg = "install() comes before the application's first request"
        raise DurableUsageError(msg)
    if hasattr(app.state, STATE_NAME):
        msg = "a Durable is installed in this application already"
        raise DurableUsageError(msg)
    registry = durable.engine.registry
    refuse_bare_routes(registry, app.router)
    # Routes may be added, and functions decorated, until the start.
    registry.checks.append(partial(refuse_bare_routes, registry, app.router))
    setattr(app.state, STATE_NAME, durable)
    registry.injection.add(_is_injected, shapes_response=_shapes_response)
    # Starlette calls it for requests and for WebSockets; its annotation allows only one of them.
    app.add_exception_handler(DurableError, typing.cast("typing.Any", _respond))
    handler_policies = HandlerPolicies(app, flatten)
    # The last middleware is the innermost; `add_middleware` puts later ones in front.
    app.user_middleware.append(
        Middleware(
            IdempotencyMiddleware,
            engine=durable.engine,
            policy=durable.idempotency,
            routes=durable.idempotency_routes,
            find_policy=RouterView(handler_policies, handler_policies.parameters),
        )
    )
    build = app.build_middleware_stack

    def build_with_durable() -> ASGIApp:
        wrap = partial(
            durable.wrap_outer,
            inside=partial(_inside, app),
            around=partial(_around, app),
            handler_policies=handler_policies.policies,
            find_route=handler_policies.find_route,
            find_stack=lambda: app.middleware_stack,
        )
        return wrap_stack(build(), lambda stack: wrap(ReadAheadMiddleware(stack, lift_limit)))

    # Type checkers reject an assignment to a method.
    vars(app)["build_middleware_stack"] = build_with_durable


def _inside(app: Starlette) -> Iterable[type]:
    """Return the classes of the middlewares and routes inside the idempotency middleware."""
    kinds = [class_of(entry) for entry in app.user_middleware]
    own = kinds.index(IdempotencyMiddleware)
    return [*kinds[own + 1 :], *classes_within(app.router)]


def _around(app: Starlette) -> Iterable[type]:
    """Return the classes of the application's middlewares around the idempotency middleware."""
    kinds = [class_of(entry) for entry in app.user_middleware]
    return kinds[: kinds.index(IdempotencyMiddleware)]


async def _respond(connection: HTTPConnection, error: Exception) -> Response | None:
    if not isinstance(error, DurableError):
        raise error
    if isinstance(connection, WebSocket) and connection.application_state is not _CONNECTING:
        await connection.close(code=_INTERNAL_ERROR)
        return None
    status, headers, body = problem_response(error)
    response = Response(body, status_code=status)
    response.raw_headers = headers
    return response
