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
    """The decorators for workflows, steps and transactions, ``async def`` or ``def``.

    Each works with and without arguments, and does not change how a function is called: an
    ``async def`` function is still awaited, and a ``def`` function still runs in the thread of
    its call.

    Attributes:
        engine: Runs the async functions.
        thread_calls: Runs the ``def`` functions.
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

        Example::

            @durable.workflow
            async def checkout(order_id: int) -> str:
                return await charge(order_id)

        Args:
            function: The function, if the decorator is used without arguments.
            name: The workflow's name in the database; by default its qualified name.
            max_recovery_attempts: How often the workflow is resumed after crashes of its process
                in a row, without any progress in between, before it is set aside as
                ``RETRIES_EXCEEDED``; ``None`` for no limit. It is always resumed after the first
                two crashes, and runs alone after the second one, so that it is not blamed for
                another workflow's crash.

        Raises:
            DurableUsageError: It is no function, or a generator function; another workflow has
                the name; or the number of attempts is less than 1.
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
        effects: bool = True,
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
        effects: bool = True,
    ) -> Any:
        """Make a function a step: recorded inside a workflow, a plain call outside.

        Example::

            @durable.step(retry=RetryPolicy(max_attempts=5), timeout=10)
            async def charge(order_id: int) -> str: ...

        Args:
            function: The function, if the decorator is used without arguments.
            name: The step's name in the step log; by default its qualified name.
            retry: When the step is retried; three attempts by default, ``None`` for one attempt.
            timeout: Time limit of each attempt in seconds; for ``async def`` functions only.
            at_most_once: True if the body must not run a second time. The step's begin is
                recorded before the body runs, and it has one attempt. If its outcome is lost, for
                example because its process died, the step raises ``StepInterruptedError`` from
                then on. An error that the body raised stands, also for a request's retry.
            effects: False if the body only reads or computes. It then runs before the earlier
                calls are durable, so a chain of such steps costs one commit. It may run again
                after a crash, although a later step without effects has seen its result.

        Raises:
            DurableUsageError: It is no function, or a generator function; or the options do not
                fit each other or the function.
        """
        options = StepOptions(
            retry=retry,
            timeout_seconds=timeout,
            at_most_once=at_most_once,
            has_effects=effects,
        )

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
        ``async def`` function, and a ``Session`` in a ``def`` function.

        Example::

            @durable.transaction
            async def add_order(name: str) -> None:
                durable.session.add(Order(name=name))

        Args:
            function: The function, if the decorator is used without arguments.
            name: The transaction's name in the step log; by default its qualified name.
            isolation_level: For example ``"SERIALIZABLE"``; ``None`` for the database's default.
                A transaction that the database gives up in favour of another one is retried.

        Raises:
            DurableUsageError: It is no function, or a generator function.
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
        """Register a class whose values are recorded although no annotation names it.

        Example::

            durable.register_type(Order, aliases=["old.module:Order"])

        Args:
            hint: The class; without a name and aliases also a type hint that names several.
            name: The recorded name of the class, by default ``"module:QualName"``. A class with
                a name of its own may be moved and renamed.
            aliases: Former recorded names, for example ``["old.module:Order"]``.

        Raises:
            DurableUsageError: Values of the class cannot be recorded, or another class has the
                name.
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
        """Define how exceptions of a class, and of its subclasses, are recorded.

        It is needed for exceptions that cannot be recorded as they are: those that hold a
        connection, or whose class is written in another language, made inside a function, or
        renamed. Class, notes, cause and traceback are always recorded.

        Example::

            durable.register_exception(
                CardError,
                to_data=lambda error: {"code": error.response.code, "text": str(error)},
                from_data=lambda data: CardError(data["text"], response=Reply(data["code"])),
            )

        Args:
            cls: The class.
            to_data: Returns the data to record of an exception: any value that a step may return.
            from_data: Makes the exception from that data, with the same message. It should read
                the data that earlier versions of the code recorded.
            aliases: Former recorded names of the class, as ``"module:QualName"``.

        Raises:
            DurableUsageError: The class is no exception class, one of the two functions is
                missing, an alias has another form, or the codec has no such method.
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
    """Decorate a function; for a static or class method, the function inside it."""
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(decorate(function.__func__))
    return decorate(function)


def durable_function(
    definition: Definition, call: Callable[[tuple[Any, ...], dict[str, Any]], Any]
) -> Callable[..., Any]:
    """Return the function that replaces a decorated one.

    It is a plain function, and returns a coroutine for an async one: the call takes its place in
    the step log when it is called, not when it is awaited. For frameworks that ask, it is a
    coroutine function if the decorated one is.
    """

    @functools.wraps(definition.decorated)
    def durable_function(*args: Any, **kwargs: Any) -> Any:
        return call(args, kwargs)

    setattr(durable_function, DEFINITION_ATTRIBUTE, definition)
    if not definition.is_async:
        return durable_function
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(durable_function)
    # `asyncio.iscoroutinefunction` looks for this marker before Python 3.12.
    marker = getattr(asyncio.coroutines, COROUTINE_MARKER)
    setattr(durable_function, COROUTINE_MARKER, marker)
    if sys.implementation.name == "cpython":
        # `inspect.iscoroutinefunction` looks for this flag. It does not change a call: CPython 3.11
        # makes a coroutine because of an instruction in the code, not because of the flag.
        code = getattr(durable_function, CODE_ATTRIBUTE)
        code = code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)
        setattr(durable_function, CODE_ATTRIBUTE, code)
    return durable_function


def called_workflow(
    engine: Engine, function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[WorkflowDefinition, tuple[Any, ...]]:
    """Return the definition of a decorated workflow, and the arguments of its call.

    Raises:
        DurableUsageError: The function is not a workflow of this engine.
    """
    definition = getattr(function, DEFINITION_ATTRIBUTE, None)
    if not isinstance(definition, WorkflowDefinition) or definition.registry is not engine.registry:
        msg = f"{function!r} is not a workflow of this Durable; decorate it with @durable.workflow"
        raise DurableUsageError(msg)
    return definition, _with_owner(function, args)


def called_step(
    engine: Engine, function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[StepDefinition | TransactionDefinition, tuple[Any, ...]]:
    """Return the definition of a decorated step or transaction, and the arguments of its call.

    Raises:
        DurableUsageError: The function is no step or transaction of this engine.
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
    """Return the arguments, with the object of a bound method in front."""
    return (function.__self__, *args) if inspect.ismethod(function) else args
