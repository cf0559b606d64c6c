"""Which functions can be decorated, and what of their parameters is no argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asgi_durable.errors import DurableUsageError

__all__ = ["owner_parameter", "refuse_other_than_functions"]


def refuse_other_than_functions(decorated: object) -> None:
    """Raise ``DurableUsageError`` for what is no function, or a generator."""
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
