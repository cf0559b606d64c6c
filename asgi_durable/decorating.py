"""What replaces a decorated function."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

from asgi_durable.engine.engine import Engine
from asgi_durable.engine.registry import Definition, WorkflowDefinition
from asgi_durable.errors import DurableUsageError

__all__ = ["AsyncFunction", "Decorator", "durable_function", "workflow_definition"]

P = ParamSpec("P")
R = TypeVar("R")
AsyncFunction = Callable[P, Coroutine[Any, Any, R]]

DEFINITION_ATTRIBUTE = "__durable_definition__"
COROUTINE_MARKER = "_is_coroutine"
CODE_ATTRIBUTE = "__code__"


class Decorator(Protocol):
    """Keeps the signature of what it decorates."""

    def __call__(self, function: AsyncFunction[P, R], /) -> AsyncFunction[P, R]:
        """Decorate an ``async def`` function."""


def durable_function(
    definition: Definition, call: Callable[[tuple[Any, ...], dict[str, Any]], Any]
) -> Callable[..., Any]:
    """Return what replaces a decorated function.

    A plain function that returns a coroutine, as the call's place in the log is given out
    when it is called. Frameworks ask whether it is a coroutine function: it says yes.
    """

    @functools.wraps(definition.function)
    def durable_function(*args: Any, **kwargs: Any) -> Any:
        return call(args, kwargs)

    setattr(durable_function, DEFINITION_ATTRIBUTE, definition)
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(durable_function)
    # What `asyncio.iscoroutinefunction` looks for before Python 3.12.
    marker = getattr(asyncio.coroutines, COROUTINE_MARKER)
    setattr(durable_function, COROUTINE_MARKER, marker)
    if sys.implementation.name == "cpython":
        # What `inspect.iscoroutinefunction` looks for. A call stays what it is: CPython 3.11
        # makes a coroutine where an instruction says so, not where this flag is.
        code = getattr(durable_function, CODE_ATTRIBUTE)
        code = code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)
        setattr(durable_function, CODE_ATTRIBUTE, code)
    return durable_function


def workflow_definition(engine: Engine, function: Callable[..., Any]) -> WorkflowDefinition:
    """Return what an engine knows of a decorated function.

    Raises:
        DurableUsageError: It is not a workflow of this engine's.
    """
    definition = getattr(function, DEFINITION_ATTRIBUTE, None)
    if not isinstance(definition, WorkflowDefinition) or definition.registry is not engine.registry:
        msg = f"{function!r} is not a workflow of this Durable; decorate it with @durable.workflow"
        raise DurableUsageError(msg)
    return definition
