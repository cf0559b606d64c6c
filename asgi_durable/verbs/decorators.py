"""The decorators that make functions durable."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from asgi_durable.codec.json_codec import JsonCodec
from asgi_durable.codec.tagged.type_registry import refuse_unrecordable
from asgi_durable.engine.blocking_engine import BlockingEngine
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.process.definitions import (
    Definition,
    StepDefinition,
    TransactionDefinition,
    WorkflowDefinition,
)
from asgi_durable.engine.process.step_options import DEFAULT_RETRY, StepOptions
from asgi_durable.engine.runs.call import WorkflowOptions
from asgi_durable.errors import DurableUsageError
from asgi_durable.retry import RetryPolicy

__all__ = [
    "Decorators",
    "FunctionT",
    "called_step",
    "called_workflow",
    "decorated",
    "durable_function",
]

E = TypeVar("E", bound=Exception)


class Decorators:
    """Workflows, steps and transactions, of functions that are async and of others.

    Each works bare and with arguments, and keeps what it decorates as it is: an ``async def``
    function is still awaited, and a ``def`` function still runs in the thread it is called in.

    Attributes:
        engine: What runs them.
    """

    engine: Engine
    thread_calls: BlockingEngine

    @overload
    def workflow(self, function: FunctionT, /) -> FunctionT: ...

    @overload
    def workflow(
        self, /, *, name: str | None = None, max_recovery_attempts: int | None = ...
    ) -> Callable[[FunctionT], FunctionT]: ...

    def workflow(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        max_recovery_attempts: int | None = 20,
    ) -> Any:
        """Make a function a workflow; calling it runs it durably.

        Args:
            function: The function, where the decorator is used bare.
            name: What the log calls it; its qualified name by default.
            max_recovery_attempts: How often it is taken up again after its process died, in
                a row and without any progress, until it is set aside as
                ``RETRIES_EXCEEDED``; ``None`` for ever. At least two more are made, in which
                it runs by itself, so that it is not blamed for another's doing.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            definition = WorkflowDefinition(
                function,
                name=name,
                registry=self.engine.registry,
                max_recovery_attempts=max_recovery_attempts,
            )
            self.engine.registry.add_workflow(definition)
            options = WorkflowOptions()
            calls = self.engine if definition.is_async else self.thread_calls
            return durable_function(
                definition,
                lambda args, kwargs: calls.call_workflow(definition, args, kwargs, options),
            )

        return _apply(decorate, function)

    @overload
    def step(self, function: FunctionT, /) -> FunctionT: ...

    @overload
    def step(
        self,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = ...,
        timeout: float | None = None,
        at_most_once: bool = False,
    ) -> Callable[[FunctionT], FunctionT]: ...

    def step(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = DEFAULT_RETRY,
        timeout: float | None = None,
        at_most_once: bool = False,
    ) -> Any:
        """Make a function a step: recorded inside a workflow, a plain call outside.

        Args:
            function: The function, where the decorator is used bare.
            name: What the log calls it; its qualified name by default.
            retry: When it is tried again; three attempts by default, ``None`` for one.
            timeout: Seconds for each attempt; for ``async def`` functions only.
            at_most_once: True if its body must not run a second time. That it begins is
                durable before it does. Where its outcome got lost, as its process died say,
                it raises ``StepInterruptedError`` from then on; whatever it raised stands,
                for a request's retry as well. It has one attempt.
        """
        options = StepOptions(retry=retry, timeout_seconds=timeout, at_most_once=at_most_once)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            definition = StepDefinition(
                function, name=name, registry=self.engine.registry, options=options
            )
            calls = self.engine if definition.is_async else self.thread_calls
            return durable_function(
                definition, lambda args, kwargs: calls.call_step(definition, args, kwargs)
            )

        return _apply(decorate, function)

    @overload
    def transaction(self, function: FunctionT, /) -> FunctionT: ...

    @overload
    def transaction(
        self, /, *, name: str | None = None, isolation_level: str | None = None
    ) -> Callable[[FunctionT], FunctionT]: ...

    def transaction(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        isolation_level: str | None = None,
    ) -> Any:
        """Make a function a transaction with ``durable.session``.

        Inside a workflow or a keyed request its rows and its record commit together, exactly
        once; elsewhere it is a plain transaction. The session is an ``AsyncSession`` in an
        ``async def`` function, and a ``Session`` of the thread in a ``def`` function.

        Args:
            function: The function, where the decorator is used bare.
            name: What the log calls it; its qualified name by default.
            isolation_level: ``"SERIALIZABLE"`` say; the database's default with ``None``. A
                transaction that the database gives up for another one is tried again.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            definition = TransactionDefinition(
                function,
                name=name,
                registry=self.engine.registry,
                isolation_level=isolation_level,
            )
            calls = self.engine if definition.is_async else self.thread_calls
            return durable_function(
                definition, lambda args, kwargs: calls.call_transaction(definition, args, kwargs)
            )

        return _apply(decorate, function)

    def register_type(
        self, hint: object, *, name: str | None = None, aliases: Iterable[str] = ()
    ) -> None:
        """Let values of a class be recorded that no annotation names.

        Args:
            hint: The class; without a name and aliases also a type hint that names several.
            name: What its values are recorded as, ``"module:QualName"`` by default. With a name
                the class may move, and be renamed.
            aliases: What they were recorded as before, ``["old.module:Order"]`` say.

        Raises:
            DurableUsageError: The class is none that can be recorded, or a name is another
                class's.
        """
        codec = self.engine.registry.codec
        if name is None and not aliases:
            if type(codec) is JsonCodec:
                refuse_unrecordable(hint)
            codec.register(hint)
        elif isinstance(codec, JsonCodec):
            codec.register(hint, name=name, aliases=aliases)
        else:
            msg = f"{type(codec).__name__} takes no names of classes, register the class alone"
            raise DurableUsageError(msg)

    def register_exception(
        self,
        cls: type[E],
        *,
        to_data: Callable[[E], object] | None = None,
        from_data: Callable[[Any], E] | None = None,
        aliases: Iterable[str] = (),
    ) -> None:
        """Say how a class of exceptions, and its subclasses, are recorded.

        It is needed for what cannot be recorded as it is: an exception that holds a connection,
        one whose class is written in another language or made inside a function, one whose class
        was renamed. Class, notes, cause and traceback are always kept.

        Example::

            durable.register_exception(
                CardError,
                to_data=lambda error: {"code": error.response.code, "text": str(error)},
                from_data=lambda data: CardError(data["text"], response=Reply(data["code"])),
            )

        Args:
            cls: The class.
            to_data: Returns what is recorded of an exception: any value that a step may return.
            from_data: Makes the exception again of that. It has to have the same message, and
                should read what earlier versions of the code have recorded.
            aliases: Names under which the class was recorded before, ``"module:QualName"``.

        Raises:
            DurableUsageError: It is no class of exceptions, one of the two functions is missing,
                an alias has another form, or the codec has no such method.
        """
        register = getattr(self.engine.registry.codec, "register_exception", None)
        if register is None:
            kind = type(self.engine.registry.codec).__name__
            msg = f"the codec {kind} has no method register_exception(); see JsonCodec"
            raise DurableUsageError(msg)
        register(cls, to_data=to_data, from_data=from_data, aliases=aliases)


def _apply(
    decorate: Callable[[Callable[..., Any]], Callable[..., Any]], function: object | None
) -> Any:
    if function is None:
        return lambda function: decorated(function, decorate)
    return decorated(function, decorate)


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
