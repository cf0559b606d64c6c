"""The parameters of decorated functions, and the rules for those that a framework injects."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from asgi_durable.errors import DurableUsageError

__all__ = [
    "IS_OPTIONAL",
    "InjectedParameter",
    "InjectionRules",
    "default_of",
    "filled_with",
    "owner_parameter",
    "require_function",
]

# Kinds of parameters that a call may leave out, even if they have no default.
IS_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

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


def default_of(parameter: inspect.Parameter) -> Any:
    """Return the value of a parameter that a call leaves out; ``empty`` if it is required."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return ()
    if parameter.kind is parameter.VAR_KEYWORD:
        return {}
    return parameter.default


def require_function(decorated: object) -> None:
    """Check that an object can be made durable.

    Raises:
        DurableUsageError: It is no function, or a generator function.
    """
    is_function = inspect.isfunction(decorated) or inspect.ismethod(decorated)
    is_generator = inspect.isgeneratorfunction(decorated) or inspect.isasyncgenfunction(decorated)
    if not is_function or is_generator:
        msg = f"{decorated!r} must be a 'def' or 'async def' function, and no generator"
        if not (is_function or isinstance(decorated, type)):
            msg += "; a decorator that makes it a route goes above those of durable"
        raise DurableUsageError(msg)


def owner_parameter(function: Callable[..., Any], signature: inspect.Signature) -> frozenset[str]:
    """Return the name of a method's ``self`` or ``cls``, which is no argument to record."""
    owner = function.__qualname__.rpartition(".")[0]
    first = next(iter(signature.parameters), "")
    is_method = owner and not owner.endswith("<locals>") and first in {"self", "cls"}
    return frozenset([first]) if is_method else frozenset()
