"""Definitions: what the engine knows of each decorated function."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any, ClassVar, Protocol, Self, TypeVar, cast

from asgi_durable.codec.json_codec import Codec
from asgi_durable.codec.typed.canonical import Canonical
from asgi_durable.codec.types import function_hints
from asgi_durable.codec.values import Values
from asgi_durable.engine.process.function_values import FunctionValues
from asgi_durable.engine.process.parameters import (
    IS_OPTIONAL,
    InjectionRules,
    default_of,
    owner_parameter,
    require_function,
)
from asgi_durable.engine.process.step_options import StepOptions
from asgi_durable.errors import DecodeError, DurableUsageError

__all__ = [
    "Definition",
    "DefinitionRegistry",
    "StepDefinition",
    "TransactionDefinition",
    "WorkflowDefinition",
]

ResultT = TypeVar("ResultT")

AsyncFunction = Callable[..., Coroutine[Any, Any, Any]]

# After this many crashes in a row without progress a workflow is taken over alone.
CRASHES_OF_A_SUSPECT = 2
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD
_BY_NAME_ONLY = inspect.Parameter.KEYWORD_ONLY


class Thread(Protocol):
    """Runs a sync function in a thread and returns an awaitable."""

    def run(self, function: Callable[[], ResultT]) -> Coroutine[Any, Any, ResultT]:
        """Call a function in a thread."""


class DefinitionRegistry(Protocol):
    """The registry of a definition; see ``Registry``."""

    @property
    def codec(self) -> Codec:
        """Encodes values."""

    @property
    def values(self) -> Values:
        """Writes and reads recorded values."""

    @property
    def threads(self) -> Thread:
        """Runs sync functions, unless a thread waits for their result."""

    @property
    def injection(self) -> InjectionRules:
        """Tells the parameters that a framework injects."""

    @property
    def preparing(self) -> AbstractContextManager[object]:
        """A lock, held by the thread that resolves annotations."""

    def add(self, definition: Definition) -> None:
        """Add a definition."""


class Definition:
    """A decorated function.

    Attributes:
        kind: ``"step"``, ``"transaction"`` or ``"workflow"``.
        decorated: The function.
        function: The function to await: a sync function is called in a thread.
        is_async: True for an ``async def`` function.
        thread: Runs the function if it is not async.
        injected: Names of the parameters that a framework fills anew for every request.
        unrecorded: Names of the parameters that are never recorded: the injected ones, and the
            ``self`` or ``cls`` of a method.
        response_parameters: Names of the injected parameters that shape the response.
        defaults: Default values of the parameters, by name.
        positional: Names of the parameters that a call can pass by position.
    """

    kind: ClassVar[str] = "function"

    def __init__(
        self, decorated: Callable[..., Any], *, name: str | None, registry: DefinitionRegistry
    ) -> None:
        require_function(decorated)
        self.decorated = decorated
        self.is_async = inspect.iscoroutinefunction(decorated)
        self.function: AsyncFunction = decorated if self.is_async else self.call_in_thread
        self.thread: Thread = registry.threads
        self.name = name or decorated.__qualname__
        self.signature = inspect.signature(decorated)
        self.registry = registry
        self.injected: frozenset[str] = frozenset()
        self.unrecorded: frozenset[str] = frozenset()
        self.response_parameters: frozenset[str] = frozenset()
        kinds = {parameter.kind for parameter in self.signature.parameters.values()}
        # If all parameters can be passed by name, a call needs no binding.
        self._all_by_name = kinds <= {_BY_NAME, _BY_NAME_ONLY}
        self._names = tuple(self.signature.parameters) if kinds <= {_BY_NAME} else ()
        self.defaults = {
            parameter.name: default_of(parameter)
            for parameter in self.signature.parameters.values()
            if default_of(parameter) is not parameter.empty
        }
        self.positional = tuple(
            parameter.name
            for parameter in self.signature.parameters.values()
            if parameter.kind in _BY_PLACE
        )
        self._prepared = False
        self._hints: Mapping[str, object] = {}
        self._values: FunctionValues | None = None
        registry.add(self)

    def called_in(self, thread: Thread) -> Self:
        """Return the same function, called in *thread* if it is not async."""
        if self.is_async:
            return self
        # The copies share the values, so they are made before the copy.
        self._ready_values()
        bound = copy.copy(self)
        bound.thread = thread
        bound.function = bound.call_in_thread
        return bound

    def call_decorated(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the sync function here.

        Raises:
            DurableUsageError: It returned a coroutine.
        """
        result = self.decorated(*args, **kwargs)
        if inspect.iscoroutine(result):
            result.close()
            msg = f"{self.decorated!r} returns a coroutine: make it an 'async def' function"
            raise DurableUsageError(msg)
        return result

    def call_in_thread(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call the function in its thread."""
        return self.thread.run(functools.partial(self.call_decorated, *args, **kwargs))

    def prepare(self) -> None:
        """Resolve the annotations, once and as late as possible: they may name later classes."""
        if self._prepared:
            return
        # Invariant: no thread uses a function that another one has half prepared.
        with self.registry.preparing:
            if not self._prepared:
                self._resolve_annotations()
                self._prepared = True

    def _resolve_annotations(self) -> None:
        hints = self._hints = function_hints(cast("FunctionType", self.decorated))
        owner = owner_parameter(self.decorated, self.signature)
        self.injected = frozenset(
            parameter.name
            for parameter in self.signature.parameters.values()
            if parameter.name not in owner
            and self.registry.injection.is_injected(parameter, hints.get(parameter.name))
        )
        self.unrecorded = owner | self.injected
        self.response_parameters = frozenset(
            name
            for name in self.injected
            if self.registry.injection.shapes_response(
                self.signature.parameters[name], hints.get(name)
            )
        )
        for name, hint in hints.items():
            if name not in self.unrecorded:
                self.registry.codec.register(hint)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name.

        Raises:
            TypeError: The arguments do not fit the function's signature.
        """
        if not kwargs and len(args) == len(self._names):
            return dict(zip(self._names, args, strict=True))
        return self.signature.bind(*args, **kwargs).arguments

    def call(self, arguments: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """Call the function with arguments by name."""
        if self._all_by_name:
            return self.function(**arguments)
        ordered = {k: arguments[k] for k in self.signature.parameters if k in arguments}
        bound = inspect.BoundArguments(self.signature, ordered)
        return self.function(*bound.args, **bound.kwargs)

    @property
    def values(self) -> FunctionValues:
        """Reads and writes the function's arguments and results."""
        return self._values or self._ready_values()

    def _ready_values(self) -> FunctionValues:
        if self._values is None:
            self.prepare()
            self._values = self.new_values()
        return self._values

    def new_values(self) -> FunctionValues:
        """Return a new reader and writer, by the annotations that :meth:`prepare` resolved."""
        function = f"{self.kind} {self.name!r}"
        return FunctionValues(self.registry.values, function, self.signature, self.recorded_hints())

    def recorded_hints(self) -> dict[str, object]:
        """Return the annotations of the recorded values: the result, as arguments are digested."""
        return {name: hint for name, hint in self._hints.items() if name == "return"}

    def recorded_arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the arguments that are recorded."""
        if not self.unrecorded:
            return args, kwargs
        arguments = self.arguments(args, kwargs)
        return (), {k: v for k, v in arguments.items() if k not in self.unrecorded}


class StepDefinition(Definition):
    """A function decorated as a step."""

    kind = "step"

    def __init__(
        self,
        decorated: Callable[..., Any],
        *,
        name: str | None,
        registry: DefinitionRegistry,
        options: StepOptions,
    ) -> None:
        super().__init__(decorated, name=name, registry=registry)
        options = options.of(self.name, is_async=self.is_async)
        self.retry = options.retry
        self.timeout_seconds = options.timeout_seconds
        self.at_most_once = options.at_most_once
        self.has_effects = options.has_effects


class TransactionDefinition(Definition):
    """A function decorated as a transaction."""

    kind = "transaction"

    def __init__(
        self,
        decorated: Callable[..., Any],
        *,
        name: str | None,
        registry: DefinitionRegistry,
        isolation_level: str | None,
    ) -> None:
        super().__init__(decorated, name=name, registry=registry)
        self.isolation_level = isolation_level


class WorkflowDefinition(Definition):
    """A function decorated as a workflow."""

    kind = "workflow"

    def __init__(
        self,
        decorated: Callable[..., Any],
        *,
        name: str | None,
        registry: DefinitionRegistry,
        max_recovery_attempts: int | None,
    ) -> None:
        super().__init__(decorated, name=name, registry=registry)
        if max_recovery_attempts is not None and max_recovery_attempts < 1:
            msg = f"workflow {self.name!r}: max_recovery_attempts must be at least 1, or None"
            raise DurableUsageError(msg)
        self.max_recovery_attempts = max_recovery_attempts

    def recorded_hints(self) -> dict[str, object]:
        return {name: hint for name, hint in self._hints.items() if name not in self.unrecorded}

    def is_hopeless(self, crashes: int) -> bool:
        """Tell whether the workflow has crashed too many processes in a row.

        Invariant: it crashed the last of them while it ran as a suspect, alone. A workflow that
        only ran beside the culprit is never given up.
        """
        limit = self.max_recovery_attempts
        return limit is not None and crashes > max(limit, CRASHES_OF_A_SUSPECT)

    def encode_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Return the recorded arguments as the workflow's input.

        Raises:
            TypeError: The arguments do not fit the function's signature.
            EncodeError: An argument cannot be recorded; the message names it.
        """
        recorded = self.arguments(args, kwargs)
        if self.unrecorded:
            recorded = {k: v for k, v in recorded.items() if k not in self.unrecorded}
        return self.values.write_arguments(recorded)

    def is_same_input(self, one: bytes, other: bytes) -> bool:
        """Tell whether two inputs mean the same to the function as it is now.

        Raises:
            DecodeError: One of them does not fit the function.
        """
        if one == other:
            return True
        canonical = Canonical(self.registry.codec.encode, calls_factories=True)
        forms = [
            canonical.mapping(self.values.read_arguments(data), self.defaults)
            for data in (one, other)
        ]
        return forms[0] == forms[1]

    def bind_input(
        self, data: bytes, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, is_first: bool
    ) -> dict[str, Any]:
        """Return the arguments to run with: the recorded ones, and the call's unrecorded ones.

        Args:
            data: The workflow's input, encoded by :meth:`encode_input`.
            args: The call's positional arguments.
            kwargs: The call's keyword arguments.
            is_first: True in the first execution; after that the input may come from another
                version of the function.

        Raises:
            DecodeError: The recorded arguments do not fit the function.
        """
        arguments = self.values.read_arguments(data)
        if not is_first:
            self._refuse_misfit(arguments)
        if self.unrecorded:
            passed = self.signature.bind_partial(*args, **kwargs).arguments
            arguments.update({k: v for k, v in passed.items() if k in self.unrecorded})
        return arguments

    def _refuse_misfit(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments that were recorded for another version of the function.

        A call would raise a ``TypeError``, an outcome of the workflow; but another process may
        run code that fits the arguments.
        """
        parameters = self.signature.parameters
        unknown = sorted(arguments.keys() - parameters.keys())
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in IS_OPTIONAL
            and name not in arguments
            and name not in self.unrecorded
        ]
        if unknown or missing:
            msg = (
                f"the recorded arguments do not fit workflow {self.name!r}: "
                f"unknown {unknown}, missing {missing}"
            )
            raise DecodeError(msg)
