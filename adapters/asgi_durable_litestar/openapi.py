"""The key, and the responses to wrong ones, in Litestar's OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litestar.openapi.spec import (
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    Schema,
)
from litestar.routes import HTTPRoute

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.policies.openapi import (
    PROBLEM_MEDIA_TYPE,
    key_parameter,
    problem_descriptions,
    problem_schema,
    response_headers,
)
from asgi_durable.middleware.policies.policy_routes import PolicyRoutes
from asgi_durable_litestar.handlers import handler_policy

__all__ = ["describe_keys"]


def describe_keys(route: HTTPRoute, durable: Durable) -> None:
    """Describe the key in the operations of a route that take one."""
    for handler in route.route_handlers:
        policy = _find_policy(durable, handler, route.path_format)
        if policy is not None and not issubclass(handler.operation_class, _TakesKey):
            handler.operation_class = _describing(handler.operation_class, policy)


def _find_policy(durable: Durable, handler: Any, path: str) -> IdempotencyPolicy | None:
    own = handler_policy(handler)
    policies = PolicyRoutes(durable.idempotency, durable.idempotency_routes, lambda _scope: own)
    found = (policies.find({"method": m, "path": path}) for m in sorted(handler.http_methods))
    return next((policy for policy in found if policy is not None), None)


class _TakesKey:
    """Marks the class of operations that take a key."""


def _describing(base: type[Operation], policy: IdempotencyPolicy) -> type[Operation]:
    """Return a class of operations that also describe the key."""

    @dataclass
    class KeyedOperation(_TakesKey, base):  # type: ignore[misc, valid-type]
        def __post_init__(self) -> None:
            inherited = getattr(super(), "__post_init__", None)
            if inherited is not None:
                inherited()
            _describe(self, policy)

    return KeyedOperation


def _describe(operation: Operation, policy: IdempotencyPolicy) -> None:
    operation.parameters = _with_key(operation.parameters or [], policy)
    operation.responses = _with_problems(operation.responses or {}, policy)


def _with_key(parameters: list[Any], policy: IdempotencyPolicy) -> list[Any]:
    described = key_parameter(policy)
    if described is None:
        return parameters
    name = described["name"].lower()
    if any(getattr(known, "name", "").lower() == name for known in parameters):
        return parameters
    parameter = Parameter(
        name=described["name"],
        param_in=described["in"],
        required=described["required"],
        description=described["description"],
        schema=_schema(described["schema"]),
    )
    return [*parameters, parameter]


def _with_problems(responses: dict[str, Any], policy: IdempotencyPolicy) -> dict[str, Any]:
    described = dict(responses)
    for status, response in described.items():
        if status[:1] in "23":
            response.headers = _response_headers() | (response.headers or {})
    for status, description in problem_descriptions(policy).items():
        response = described.setdefault(status, OpenAPIResponse(description=description))
        content = dict(response.content or {})
        content.setdefault(PROBLEM_MEDIA_TYPE, OpenAPIMediaType(schema=_schema(problem_schema())))
        response.content = content
    return described


def _response_headers() -> dict[str, Any]:
    schema = Schema(type=OpenAPIType.STRING)
    return {
        name: OpenAPIHeader(description=description, schema=schema)
        for name, description in response_headers().items()
    }


def _schema(document: dict[str, Any]) -> Schema:
    kinds = document["type"]
    return Schema(
        type=[OpenAPIType(kind) for kind in kinds]
        if isinstance(kinds, list)
        else OpenAPIType(kinds),
        title=document.get("title"),
        min_length=document.get("minLength"),
        max_length=document.get("maxLength"),
        properties={
            name: _schema(member) for name, member in document.get("properties", {}).items()
        }
        or None,
        required=document.get("required"),
    )
