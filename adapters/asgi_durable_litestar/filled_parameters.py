"""Which parameters of durable handlers are filled by Litestar, which goes by their names."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

from asgi_durable.verbs.decorators import DEFINITION_ATTRIBUTE

__all__ = ["FilledParameters"]

# Of the names that Litestar knows, those that stand for the connection, or may hold secrets.
_OF_THE_CONNECTION = frozenset({"cookies", "headers", "request", "scope", "socket", "state"})


class FilledParameters:
    """The parameters of an application's handlers that are filled anew for every request."""

    def __init__(self) -> None:
        # By identity: another function may have a parameter that is equal.
        self._filled: dict[int, inspect.Parameter] = {}

    def add(self, handler: Any) -> None:
        """Take note of a handler, if it is a durable function."""
        definition = getattr(handler.fn, DEFINITION_ATTRIBUTE, None)
        if definition is None:
            return
        names = _OF_THE_CONNECTION.union(handler.resolve_dependencies())
        parameters = list(definition.signature.parameters.values())
        for position, parameter in enumerate(parameters):
            is_self = position == 0 and isinstance(handler.fn, MethodType)
            if is_self or parameter.name in names:
                self._filled[id(parameter)] = parameter

    def is_filled(self, parameter: inspect.Parameter, _hint: object) -> bool:
        """Tell whether a parameter is one of them."""
        return id(parameter) in self._filled
