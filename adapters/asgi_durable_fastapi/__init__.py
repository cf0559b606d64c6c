"""FastAPI adapter: Starlette's adapter, FastAPI's dependencies and its OpenAPI document."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, cast

import fastapi.routing
from fastapi import FastAPI, params
from fastapi.security import SecurityScopes

import asgi_durable_starlette
from asgi_durable import Durable
from asgi_durable.engine.process.parameters import filled_with
from asgi_durable_fastapi.openapi import describe_keys
from asgi_durable_starlette import current_durable, current_request_context, idempotent

__all__ = ["current_durable", "current_request_context", "idempotent", "install"]


def install(app: FastAPI, durable: Durable) -> None:
    """Make an application's requests durable.

    Routes and middlewares may be added before or after, and the application keeps its own
    ``lifespan``. Parameters that FastAPI fills anew for each request (``Depends``, ``Request``,
    ``Response``, ``BackgroundTasks``) are not recorded. The OpenAPI document describes the header
    of the key, and the responses to wrong ones, unless the application makes it itself.

    Args:
        app: The application.
        durable: The instance that records its requests.

    Raises:
        DurableUsageError: The application has been started, or has a ``Durable`` already; or a
            route calls the bare function below a durable one. For routes that are added later
            the application's start raises this.

    Example:
        ``install(app, Durable("sqlite:///shop.db"))``
    """
    asgi_durable_starlette.install(app, durable, flatten=_flatten)
    durable.engine.registry.injection.add(_is_dependency)
    durable.engine.registry.injection.add(filled_with(SecurityScopes))
    describe_keys(app, durable, _flatten)


def _flatten(routes: Sequence[Any]) -> Iterable[Any]:
    # Later versions of FastAPI represent an included router as one route.
    flatten = getattr(fastapi.routing, "iter_route_contexts", iter)
    return cast("Iterable[Any]", flatten(routes))


def _is_dependency(parameter: inspect.Parameter, hint: object) -> bool:
    markers = (parameter.default, *getattr(hint, "__metadata__", ()))
    return any(isinstance(marker, params.Depends) for marker in markers)
