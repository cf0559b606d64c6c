"""Parameters that a framework injects: it fills them anew for every request."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable

__all__ = ["InjectedParameter", "InjectionRules", "filled_with"]

# Tells whether a parameter, given its resolved type hint, is one that a framework injects.
InjectedParameter = Callable[[inspect.Parameter, object], bool]


class InjectionRules:
    """The rules of the framework adapters; injected arguments are never recorded."""

    def __init__(self) -> None:
        self._injected: list[InjectedParameter] = []
        self._shaping: list[InjectedParameter] = []

    def add(
        self, rule: InjectedParameter, *, shapes_response: InjectedParameter | None = None
    ) -> None:
        """Add the rule of a framework's adapter.

        Args:
            rule: Tells the parameters that the framework injects.
            shapes_response: Tells those among them that shape the response, for example one that
                takes its headers. A replayed function does not get the same object.
        """
        self._injected.append(rule)
        if shapes_response is not None:
            self._shaping.append(shapes_response)

    def is_injected(self, parameter: inspect.Parameter, hint: object) -> bool:
        """Tell whether a framework fills a parameter anew for every request."""
        return any(rule(parameter, hint) for rule in self._injected)

    def shapes_response(self, parameter: inspect.Parameter, hint: object) -> bool:
        """Tell whether an injected parameter shapes the response."""
        return any(rule(parameter, hint) for rule in self._shaping)


def filled_with(*classes: type) -> InjectedParameter:
    """Return a rule for parameters whose type hint is one of these classes or a subclass.

    ``Annotated`` and the arguments of a generic class make no difference.
    """

    def is_injected(_parameter: inspect.Parameter, hint: object) -> bool:
        bare = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        bare = typing.get_origin(bare) or bare
        return isinstance(bare, type) and issubclass(bare, classes)

    return is_injected
