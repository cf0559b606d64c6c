"""The key, and the responses to wrong ones, in FastAPI's OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastapi import FastAPI

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.policies.openapi import (
    PROBLEM_MEDIA_TYPE,
    key_parameter,
    problem_descriptions,
    problem_schema,
    response_headers,
)
from asgi_durable.middleware.policies.policy_routes import PolicyRoutes, policy_of

__all__ = ["describe_keys"]


def describe_keys(
    app: FastAPI, durable: Durable, flatten: Callable[[Sequence[Any]], Iterable[Any]]
) -> None:
    """Describe the key in an application's document, in the operations that take one.

    An ``openapi()`` of the application's own stays unchanged, whenever it is set.

    Args:
        app: The application.
        durable: The instance whose policies count.
        flatten: Returns routes together with those of included routers.
    """
    if "openapi" in vars(app) or type(app).openapi is not FastAPI.openapi:
        return
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        for route in flatten(app.routes):
            _describe_route(document, durable, route)
        return document

    # Type checkers reject an assignment to a method.
    vars(app)["openapi"] = openapi


def _describe_route(document: dict[str, Any], durable: Durable, route: Any) -> None:
    path = getattr(route, "path_format", None)
    operations = document.get("paths", {}).get(path, {})
    own = policy_of(getattr(route, "endpoint", None))
    policies = PolicyRoutes(durable.idempotency, durable.idempotency_routes, lambda _scope: own)
    for method in getattr(route, "methods", None) or ():
        operation = operations.get(method.lower())
        policy = policies.find({"method": method, "path": path})
        if operation is not None and policy is not None:
            _describe_operation(operation, policy)


def _describe_operation(operation: dict[str, Any], policy: IdempotencyPolicy) -> None:
    # FastAPI caches the document, so the operation may be described already; or the handler
    # declares the header itself.
    parameter = key_parameter(policy)
    if parameter is not None and not _has(operation.get("parameters", ()), parameter["name"]):
        operation.setdefault("parameters", []).append(parameter)
    responses = operation.setdefault("responses", {})
    for status, response in responses.items():
        if status[:1] in "23":
            headers = response.setdefault("headers", {})
            for name, description in response_headers().items():
                headers.setdefault(name, {"description": description, "schema": {"type": "string"}})
    for status, description in problem_descriptions(policy).items():
        response = responses.setdefault(status, {"description": description})
        content = response.setdefault("content", {})
        content.setdefault(PROBLEM_MEDIA_TYPE, {"schema": problem_schema()})


def _has(parameters: Iterable[dict[str, Any]], name: str) -> bool:
    return any(known.get("name", "").lower() == name.lower() for known in parameters)
