"""What replaces a decorated function."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from asgi_durable.engine.definitions import (
    Definition,
    StepDefinition,
    TransactionDefinition,
    WorkflowDefinition,
)
from asgi_durable.engine.engine import Engine
from asgi_durable.errors import DurableUsageError

__all__ = ["FunctionT", "called_step", "called_workflow", "decorated", "durable_function"]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

DEFINITION_ATTRIBUTE = "__durable_definition__"
COROUTINE_MARKER = "_is_coroutine"
CODE_ATTRIBUTE = "__code__"


def decorated(function: Any, decorate: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    """Decorate a function; that inside a static or class method, where it is one."""
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(decorate(function.__func__))
    return decorate(function)


def durable_function(
    definition: Definition, call: Callable[[tuple[Any, ...], dict[str, Any]], Any]
) -> Callable[..., Any]:
    """Return what replaces a decorated function.

    A plain function; for an async one it returns a coroutine, as the call's place in the log is
    given out when it is called. Frameworks ask whether it is a coroutine function: it says what
    the function says.
    """

    @functools.wraps(definition.decorated)
    def durable_function(*args: Any, **kwargs: Any) -> Any:
        return call(args, kwargs)

    setattr(durable_function, DEFINITION_ATTRIBUTE, definition)
    if not definition.is_async:
        return durable_function
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


def called_workflow(
    engine: Engine, function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[WorkflowDefinition, tuple[Any, ...]]:
    """Return what an engine knows of a decorated function, and the arguments of its call.

    Raises:
        DurableUsageError: It is not a workflow of this engine's.
    """
    definition = getattr(function, DEFINITION_ATTRIBUTE, None)
    if not isinstance(definition, WorkflowDefinition) or definition.registry is not engine.registry:
        msg = f"{function!r} is not a workflow of this Durable; decorate it with @durable.workflow"
        raise DurableUsageError(msg)
    return definition, _with_owner(function, args)


def called_step(
    engine: Engine, function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[StepDefinition | TransactionDefinition, tuple[Any, ...]]:
    """Return what an engine knows of a decorated step or transaction, and its arguments.

    Raises:
        DurableUsageError: It is neither, of this engine's.
    """
    definition = getattr(function, DEFINITION_ATTRIBUTE, None)
    if (
        not isinstance(definition, (StepDefinition, TransactionDefinition))
        or definition.registry is not engine.registry
    ):
        msg = (
            f"{function!r} is no step of this Durable; decorate it with @durable.step or "
            "@durable.transaction"
        )
        raise DurableUsageError(msg)
    return definition, _with_owner(function, args)


def _with_owner(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments with what a bound method would put before them."""
    return (function.__self__, *args) if inspect.ismethod(function) else args
