"""Litestar adapter: one plugin installs the stack, in the right places.

The request context and the lifespan go around everything: Litestar's own middlewares see
neither lifespans nor requests without a route. Idempotency goes inside the application's
middlewares, so that authentication runs first; and Litestar's own checks of hosts and CSRF
tokens run in front of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from litestar import HttpMethod, Request, Response, WebSocket, route
from litestar.background_tasks import BackgroundTask, BackgroundTasks
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import ImmutableState
from litestar.di import Provide
from litestar.exceptions import NotFoundException
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.response.base import ASGIResponse
from litestar.routes import BaseRoute, HTTPRoute

from asgi_durable import (
    Durable,
    DurableError,
    DurableUsageError,
    IdempotencyMiddleware,
    IdempotencyPolicy,
    RequestContext,
)
from asgi_durable.engine.process.parameters import filled_with
from asgi_durable.middleware.installing.bare_routes import refuse_bare_routes
from asgi_durable.middleware.policies.policy_routes import RouterView, idempotent
from asgi_durable.middleware.problem_details import problem_response
from asgi_durable_litestar.gates import Gates
from asgi_durable_litestar.handlers import FilledParameters, handler_policy, handlers_of
from asgi_durable_litestar.openapi import describe_keys
from asgi_durable_litestar.surrounding import surround

__all__ = ["DurablePlugin", "idempotent"]

_is_injected = filled_with(
    ASGIConnection,
    ASGIResponse,
    BackgroundTask,
    BackgroundTasks,
    ImmutableState,
    Request,
    Response,
    WebSocket,
)


class DurablePlugin(InitPlugin, ReceiveRoutePlugin):
    """Makes an application's requests durable.

    Parameters that Litestar fills anew for each request (dependencies, ``request``, ``socket``,
    ``state``, ``scope``, ``headers``, ``cookies``, a controller's ``self``) are not recorded.
    Handlers may ask for ``durable: Durable`` and ``request_context: RequestContext``. A handler's
    policy is ``opt={"idempotency": policy}`` of the handler or of a layer around it, else that of
    :func:`idempotent`; with ``None`` keys have no effect on the handler.

    Args:
        durable: The instance that records the requests.

    Raises:
        DurableUsageError: The application has a ``Durable`` already.

    Example:
        ``app = Litestar([create_order], plugins=[DurablePlugin(Durable("sqlite:///shop.db"))])``
    """

    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self._filled = FilledParameters()
        registry = durable.engine.registry
        registry.injection.add(_is_injected)
        registry.injection.add(self._filled.is_filled)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middlewares, dependencies and routes that belong inside the application."""
        if sum(isinstance(plugin, DurablePlugin) for plugin in app_config.plugins) > 1:
            msg = "a Durable is installed in this application already"
            raise DurableUsageError(msg)
        durable, policy = self._durable, self._durable.idempotency
        if policy.status_prefix is not None:
            prefix = app_config.path.rstrip("/") + policy.status_prefix
            # Middlewares only run for routes, and a middleware serves the pages.
            app_config.route_handlers.append(_status_pages(policy.status_prefix))
            policy = replace(policy, status_prefix=prefix)
        app_config.middleware.append(DefineMiddleware(cast("Any", Gates)))
        app_config.middleware.append(
            DefineMiddleware(
                cast("Any", IdempotencyMiddleware),
                engine=durable.engine,
                policy=policy,
                routes=durable.idempotency_routes,
                find_policy=RouterView(_find_policy, _find_parameters, merges_slashes=True),
            )
        )
        app_config.exception_handlers.setdefault(DurableError, _respond)
        provided = {"durable": self._give_durable, "request_context": self._give_request_context}
        for name, provide in provided.items():
            app_config.dependencies.setdefault(name, Provide(provide, sync_to_thread=False))
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Find the parameters that Litestar fills in, and wrap the app in the rest of the stack.

        Raises:
            DurableUsageError: A handler calls the bare function below a durable one.
        """
        for handler in handlers_of(route):
            refuse_bare_routes(self._durable.engine.registry, handler)
            self._filled.add(handler)
            surround(handler.ownership_layers[0], self._durable)
        if isinstance(route, HTTPRoute):
            describe_keys(route, self._durable)

    def _give_durable(self) -> Durable:
        return self._durable

    def _give_request_context(self) -> RequestContext | None:
        return self._durable.request


def _find_policy(scope: Any) -> IdempotencyPolicy | None:
    return handler_policy(scope["route_handler"])


def _find_parameters(scope: Any) -> dict[str, Any]:
    return dict(scope.get("path_params", {}))


def _status_pages(prefix: str) -> Any:
    paths = [f"{prefix}/{{request_id:str}}", f"{prefix}/{{request_id:str}}/result"]

    @route(paths, http_method=[HttpMethod.GET, HttpMethod.HEAD], include_in_schema=False)
    async def status_page() -> None:
        raise NotFoundException

    return status_page


def _respond(_request: Request[Any, Any, Any], error: DurableError) -> Response[bytes]:
    status, headers, body = problem_response(error)
    texts = {name.decode("ascii"): value.decode("ascii") for name, value in headers}
    return Response(body, status_code=status, headers=texts, media_type=texts.pop("content-type"))
