"""What a call of a decorated function needs to know of it."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from asgi_durable.codec.typed.canonical import Canonical
from asgi_durable.codec.types import function_hints
from asgi_durable.engine.process.function_values import FunctionValues
from asgi_durable.engine.process.step_options import StepOptions
from asgi_durable.errors import DecodeError, DurableUsageError

if TYPE_CHECKING:
    from asgi_durable.engine.process.registry import Registry

__all__ = [
    "Definition",
    "StepDefinition",
    "TransactionDefinition",
    "WorkflowDefinition",
    "owner_parameter",
    "refuse_other_than_functions",
]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

AsyncFunction = Callable[..., Coroutine[Any, Any, Any]]

# From this many crashes in a row without progress on, a workflow is taken over by itself.
CRASHES_OF_A_SUSPECT = 2
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD
_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BY_NAME_ONLY = inspect.Parameter.KEYWORD_ONLY


class Thread(Protocol):
    """Where functions that are not async run, for who awaits them."""

    def run(self, function: Callable[[], ResultT]) -> Coroutine[Any, Any, ResultT]:
        """Call a function in a thread."""


class Definition:
    """A decorated function.

    Attributes:
        kind: What it was decorated as.
        decorated: The function.
        function: It as one to await: what is not async is called in a thread.
        is_async: True for an ``async def`` function.
        thread: Where it is called if it is not async.
        ambient: Names of the parameters that are never recorded: those that a framework fills
            anew for every request, and what a method belongs to.
        injected: Those among them that a framework fills.
        answering: Those among them that the request's answer is made of.
        defaults: What parameters are where a call does not give them, by name.
        positional: Names of the parameters that can be given by place.
    """

    kind: ClassVar[str] = "function"

    def __init__(
        self, decorated: Callable[..., Any], *, name: str | None, registry: Registry
    ) -> None:
        refuse_other_than_functions(decorated)
        self.decorated = decorated
        self.is_async = inspect.iscoroutinefunction(decorated)
        self.function: AsyncFunction = decorated if self.is_async else self.call_in_thread
        self.thread: Thread = registry.threads
        self.name = name or decorated.__qualname__
        self.signature = inspect.signature(decorated)
        self.registry = registry
        self.ambient: frozenset[str] = frozenset()
        self.injected: frozenset[str] = frozenset()
        self.answering: frozenset[str] = frozenset()
        kinds = {parameter.kind for parameter in self.signature.parameters.values()}
        # Parameters that can all be given by name; then binding is a matter of a dictionary.
        self._all_by_name = kinds <= {_BY_NAME, _BY_NAME_ONLY}
        self._names = tuple(self.signature.parameters) if kinds <= {_BY_NAME} else ()
        self.defaults = {
            parameter.name: _empty_value(parameter)
            for parameter in self.signature.parameters.values()
            if _empty_value(parameter) is not parameter.empty
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
        # Made here, and not by each copy anew.
        self._ready_values()
        bound = copy.copy(self)
        bound.thread = thread
        bound.function = bound.call_in_thread
        return bound

    def call_decorated(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function here, if it is not async.

        Raises:
            DurableUsageError: It has returned a coroutine.
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
        # Invariant: nobody uses a function that another thread has half prepared.
        with self.registry.preparing:
            if not self._prepared:
                self._resolve_annotations()
                self._prepared = True

    def _resolve_annotations(self) -> None:
        hints = self._hints = function_hints(self.decorated)  # type: ignore[arg-type]
        owner = owner_parameter(self.decorated, self.signature)
        self.injected = frozenset(
            parameter.name
            for parameter in self.signature.parameters.values()
            if parameter.name not in owner
            and self.registry.is_ambient(parameter, hints.get(parameter.name))
        )
        self.ambient = owner | self.injected
        self.answering = frozenset(
            name
            for name in self.injected
            if self.registry.is_answering(self.signature.parameters[name], hints.get(name))
        )
        for name, hint in hints.items():
            if name not in self.ambient:
                self.registry.codec.register(hint)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name.

        Raises:
            TypeError: They do not fit the function's signature.
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
        """Reads and writes what the function takes and returns."""
        return self._values or self._ready_values()

    def _ready_values(self) -> FunctionValues:
        if self._values is None:
            self.prepare()
            self._values = self.new_values()
        return self._values

    def new_values(self) -> FunctionValues:
        """Return what does that, by the annotations that :meth:`prepare` has resolved."""
        function = f"{self.kind} {self.name!r}"
        return FunctionValues(self.registry.values, function, self.signature, self.recorded_hints())

    def recorded_hints(self) -> dict[str, object]:
        """Return the annotations of what is recorded: the result alone, arguments are digested."""
        return {name: hint for name, hint in self._hints.items() if name == "return"}

    def recorded_arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the arguments without the ambient ones."""
        if not self.ambient:
            return args, kwargs
        arguments = self.arguments(args, kwargs)
        return (), {k: v for k, v in arguments.items() if k not in self.ambient}


class StepDefinition(Definition):
    """A function decorated as a step."""

    kind = "step"

    def __init__(
        self,
        decorated: Callable[..., Any],
        *,
        name: str | None,
        registry: Registry,
        options: StepOptions,
    ) -> None:
        super().__init__(decorated, name=name, registry=registry)
        options = options.of(self.name, is_async=self.is_async)
        self.retry = options.retry
        self.timeout_seconds = options.timeout_seconds
        self.at_most_once = options.at_most_once


class TransactionDefinition(Definition):
    """A function decorated as a transaction."""

    kind = "transaction"

    def __init__(
        self,
        decorated: Callable[..., Any],
        *,
        name: str | None,
        registry: Registry,
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
        registry: Registry,
        max_recovery_attempts: int | None,
    ) -> None:
        super().__init__(decorated, name=name, registry=registry)
        if max_recovery_attempts is not None and max_recovery_attempts < 1:
            msg = f"workflow {self.name!r}: max_recovery_attempts must be at least 1, or None"
            raise DurableUsageError(msg)
        self.max_recovery_attempts = max_recovery_attempts

    def recorded_hints(self) -> dict[str, object]:
        return {name: hint for name, hint in self._hints.items() if name not in self.ambient}

    def is_hopeless(self, crashes: int) -> bool:
        """Tell whether the workflow has killed too many processes in a row.

        Invariant: the last of them it has killed while it ran as a suspect, by itself. Who
        only happened to run beside the one to blame is never given up.
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
        if self.ambient:
            recorded = {k: v for k, v in recorded.items() if k not in self.ambient}
        return self.values.write_arguments(recorded)

    def is_same_input(self, one: bytes, other: bytes) -> bool:
        """Tell whether two inputs mean the same to the function as it is now.

        Raises:
            DecodeError: One of them does not fit it.
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
        """Return the arguments to run with: the recorded ones, the ambient ones of the call.

        Args:
            data: What :meth:`encode_input` returned, here if this is the first execution.
            args: The call's own arguments.
            kwargs: The same, by name.
            is_first: False if the arguments may be those of another version of the function.
        """
        arguments = self.values.read_arguments(data)
        if not is_first:
            self._refuse_other_arguments(arguments)
        if self.ambient:
            given = self.signature.bind_partial(*args, **kwargs).arguments
            arguments.update({k: v for k, v in given.items() if k in self.ambient})
        return arguments

    def _refuse_other_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Refuse what was recorded for another version of the function.

        Code that fits may be running elsewhere; here it would be a ``TypeError`` of the call.
        """
        parameters = self.signature.parameters
        unknown = sorted(arguments.keys() - parameters.keys())
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in _OPTIONAL
            and name not in arguments
            and name not in self.ambient
        ]
        if unknown or missing:
            msg = (
                f"the recorded arguments do not fit workflow {self.name!r}: "
                f"unknown {unknown}, missing {missing}"
            )
            raise DecodeError(msg)


def _empty_value(parameter: inspect.Parameter) -> Any:
    """Return what a parameter is where a call does not give it; ``empty`` if it has to."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return ()
    if parameter.kind is parameter.VAR_KEYWORD:
        return {}
    return parameter.default


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
