"""The decorated functions of an application, by their names."""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from asgi_durable.codec.json_codec import Codec, JsonCodec
from asgi_durable.codec.sealing.sealer import Sealer
from asgi_durable.codec.typed.canonical import Canonical, possible_forms
from asgi_durable.codec.typed.digests import ArgumentDigest, digest_of, digests_of
from asgi_durable.codec.values import Values
from asgi_durable.concurrency.thread_pool import SyncFunctionPool
from asgi_durable.engine.process.definitions import Definition, WorkflowDefinition
from asgi_durable.engine.process.parameters import InjectionRules
from asgi_durable.engine.process.recorded_errors import read_error
from asgi_durable.errors import DecodeError, DurableUsageError
from asgi_durable.payloads import Payloads
from asgi_durable.storage.records import WorkflowRecord

__all__ = ["Registry"]


class Registry:
    """The functions and types of the application that one ``Durable`` knows.

    Args:
        codec: Encodes values.
        payloads: Size limits, compression and encryption of recorded values.

    Attributes:
        values: Writes and reads recorded values.
        sealer: Limits, compresses and encrypts recorded values.
        threads: Runs sync functions, unless a thread waits for their result.
        injection: Tells the parameters that a framework injects.
        preparing: Held by the thread that resolves annotations.
        checks: Called before each start, which fails with the error that one of them raises.
    """

    def __init__(self, codec: Codec, payloads: Payloads) -> None:
        self.codec = codec
        self.sealer = Sealer(payloads)
        self.values = Values(codec, self.sealer)
        self.threads = SyncFunctionPool()
        self.preparing = threading.RLock()
        self.injection = InjectionRules()
        self.checks: list[Callable[[], None]] = []
        self._workflows: dict[str, WorkflowDefinition] = {}
        self._unprepared: list[Definition] = []
        self._bare: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()
        self._canonical = Canonical(codec.encode)
        self._former_bytes = codec.encode
        if isinstance(codec, JsonCodec) and type(codec).encode is JsonCodec.encode:
            self._former_bytes = codec.former_bytes

    def add_workflow(self, definition: WorkflowDefinition) -> None:
        """Add a workflow under its name.

        Raises:
            DurableUsageError: Another function has the name.
        """
        known = self._workflows.get(definition.name)
        if known is not None and not _is_redefined(known.decorated, definition.decorated):
            msg = (
                f"two workflows are called {definition.name!r} ({known.decorated.__module__} and "
                f"{definition.decorated.__module__}); give one of them another name="
            )
            raise DurableUsageError(msg)
        self._workflows[definition.name] = definition

    def find_workflow(self, name: str) -> WorkflowDefinition | None:
        """Return the workflow of this name, ready to run; ``None`` if there is none."""
        self.prepare()
        return self._workflows.get(name)

    def workflow(self, name: str) -> WorkflowDefinition:
        """Return the workflow of this name, which must exist."""
        return self._workflows[name]

    def outcome(self, name: str, output: bytes | None, error: bytes | None) -> Any:
        """Return a workflow's result, or raise its error.

        Args:
            name: The workflow's name. If this process has no such workflow, its result can still
                be read unless that needs annotations.
            output: The encoded result.
            error: The encoded error, ``None`` if there is a result.

        Raises:
            DecodeError: The outcome cannot be read in this process.
        """
        definition = self.find_workflow(name)
        if error is not None:
            raise read_error(self.values, f"workflow {name!r}", error)
        if definition is not None:
            return definition.values.read_result(output)
        try:
            return self.values.read(output or b"null")
        except DecodeError as damage:
            msg = f"the result of workflow {name!r} cannot be read without the function ({damage})"
            raise type(damage)(msg) from damage

    def workflow_names(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return all names, and those that only run with their request; callable on any thread."""
        definitions = list(self._workflows.values())
        bound = frozenset(definition.name for definition in definitions if definition.unrecorded)
        return frozenset(definition.name for definition in definitions), bound

    def add(self, definition: Definition) -> None:
        """Add a function, to be prepared before any recorded value is read."""
        self._unprepared.append(definition)
        self._bare[definition.decorated] = f"{definition.kind} {definition.name!r}"

    def bare(self, function: object) -> str | None:
        """Name the durable function that a bare function belongs to, ``None`` if it has none.

        A call of the bare function, without its decorator, is not durable.
        """
        return self._bare.get(function) if inspect.isroutine(function) else None

    def run_checks(self) -> None:
        """Call the checks before a start.

        Raises:
            DurableUsageError: A check has found a mistake in the application.
        """
        for check in self.checks:
            check()

    def prepare(self) -> None:
        """Resolve the annotations of all functions: any of them may name a recorded class."""
        if not self._unprepared:
            return
        # Invariant: a function leaves the list after it is prepared, not before. A thread that
        # finds the list empty reads recorded values at once.
        with self.preparing:
            while self._unprepared:
                self._unprepared[0].prepare()
                del self._unprepared[0]

    def digest(
        self, definition: Definition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ArgumentDigest:
        """Return a digest of a step's arguments, equal for arguments that mean the same.

        An argument that cannot be recorded, for example a client, counts by its class.
        """
        if definition.unrecorded:
            args, kwargs = definition.recorded_arguments(args, kwargs)
        return self._digest(
            lambda canonical: canonical.arguments(
                args, kwargs, definition.defaults, definition.positional
            ),
            lambda: self._former_arguments(args, kwargs),
        )

    def digest_of_input(self, workflow: WorkflowRecord) -> ArgumentDigest:
        """Return a digest of the arguments that a workflow of this process is started with."""
        definition = self.workflow(workflow.name)
        arguments = definition.values.read_arguments(workflow.input or b"{}")
        return self._digest(
            lambda canonical: canonical.mapping(arguments, definition.defaults),
            lambda: self._former(arguments),
        )

    def _digest(
        self, form_of: Callable[[Canonical], bytes], former: Callable[[], bytes]
    ) -> ArgumentDigest:
        keys = self.sealer.digest_keys()

        def others() -> Iterator[bytes]:
            forms = itertools.chain([former()], possible_forms(self.codec.encode, form_of))
            yield from digests_of(forms, (b"", *keys))

        return ArgumentDigest(digest_of(form_of(self._canonical), *keys[:1]), others)

    def _former_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Return the bytes of arguments that former versions digested."""
        try:
            return self._former_bytes(list(args) if not kwargs else (args, kwargs))
        except Exception:  # the codec may be the application's
            return self._former(
                (
                    tuple(map(self._digestible, args)),
                    {k: self._digestible(v) for k, v in kwargs.items()},
                )
            )

    def _former(self, value: object) -> bytes:
        try:
            return self._former_bytes(value)
        except Exception:  # the codec may be the application's
            return b""

    def _digestible(self, value: object) -> object:
        try:
            self._former_bytes(value)
        except Exception:  # the codec may be the application's
            return f"{type(value).__module__}:{type(value).__qualname__}"
        return value


def _is_redefined(known: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Tell whether two functions are the same one, defined again by a reload or a second call."""
    return (known.__module__, known.__qualname__) == (new.__module__, new.__qualname__)
