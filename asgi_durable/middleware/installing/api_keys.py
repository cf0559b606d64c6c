"""Finds the API keys that an application declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from asgi_durable.middleware.installing.placement import is_one_of, parts_within
from asgi_durable.middleware.keys.principal import ApiKeys

__all__ = ["api_keys_within"]

_FASTAPIS = frozenset({"fastapi.openapi.models.APIKey"})


def api_keys_within(*parts: Any) -> ApiKeys:
    """Return the API keys that applications, or parts of them, declare.

    It finds the security schemes of FastAPI that routes depend on, and those in Litestar's
    OpenAPI configuration. Other frameworks do not declare them in a common way.
    """
    return ApiKeys.at(place for part in parts_within(*parts) for place in _declared_by(part))


def _declared_by(part: Any) -> Iterator[tuple[str, str]]:
    if isinstance(part, type):
        return
    yield from _of_dependants([getattr(part, "dependant", None)])
    # Dependencies of an included router's routes, with those passed to `include_router`.
    contexts = getattr(part, "effective_route_contexts", None)
    if callable(contexts):
        yield from _of_dependants([getattr(context, "dependant", None) for context in contexts()])
    components = getattr(getattr(part, "openapi_config", None), "components", None)
    for component in components if isinstance(components, list) else [components]:
        yield from _of_schemes(getattr(component, "security_schemes", None))


def _of_dependants(dependants: list[Any]) -> Iterator[tuple[str, str]]:
    pending = list(dependants)
    while pending:
        dependant = pending.pop()
        model = getattr(getattr(dependant, "call", None), "model", None)
        if is_one_of(type(model), _FASTAPIS) and model is not None:
            yield model.in_.value, model.name
        pending += getattr(dependant, "dependencies", ())


def _of_schemes(schemes: Any) -> Iterator[tuple[str, str]]:
    for scheme in schemes.values() if isinstance(schemes, Mapping) else ():
        place, name = getattr(scheme, "security_scheme_in", None), getattr(scheme, "name", None)
        if getattr(scheme, "type", None) == "apiKey" and place is not None and name is not None:
            yield place, name
