"""Signatures of decorated functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asgi_durable.errors import DurableUsageError

__all__ = ["IS_OPTIONAL", "default_of", "owner_parameter", "require_function"]

# Kinds of parameters that a call may leave out, even if they have no default.
IS_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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
