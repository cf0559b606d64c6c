"""The functions that were decorated, by their names."""

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
from asgi_durable.engine.process.request_servers import RequestServers
from asgi_durable.engine.replay.results import read_error
from asgi_durable.errors import DecodeError, DurableUsageError
from asgi_durable.payloads import Payloads
from asgi_durable.storage.records import WorkflowRecord

__all__ = ["AmbientParameter", "Registry"]

# Tells whether a parameter, with its resolved type hint, is ambient: never recorded.
AmbientParameter = Callable[[inspect.Parameter, object], bool]


class Registry:
    """All that one ``Durable`` knows of the application's functions and types.

    Args:
        codec: Encodes values.
        payloads: How they are sealed.

    Attributes:
        values: Writes and reads what the log holds.
        sealer: Limits, compresses and encrypts what is recorded.
        threads: Where functions that are not async run, unless a thread waits for them.
        preparing: Held by the thread that resolves annotations.
        request_servers: The apps of this process.
        checks: Called before each start; what one of them raises is why there is none.
    """

    def __init__(self, codec: Codec, payloads: Payloads) -> None:
        self.codec = codec
        self.sealer = Sealer(payloads)
        self.values = Values(codec, self.sealer)
        self.threads = SyncFunctionPool()
        self.preparing = threading.RLock()
        self.request_servers = RequestServers()
        self.checks: list[Callable[[], None]] = []
        self._workflows: dict[str, WorkflowDefinition] = {}
        self._unprepared: list[Definition] = []
        self._ambient_rules: list[AmbientParameter] = []
        self._bare: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()
        self._answering_rules: list[AmbientParameter] = []
        self._canonical = Canonical(codec.encode)
        self._former_bytes = codec.encode
        if isinstance(codec, JsonCodec) and type(codec).encode is JsonCodec.encode:
            self._former_bytes = codec.former_bytes

    def add_workflow(self, definition: WorkflowDefinition) -> None:
        """Make a workflow known under its name.

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
        """Return the workflow of this name, ready to run."""
        self.prepare()
        return self._workflows.get(name)

    def workflow(self, name: str) -> WorkflowDefinition:
        """Return the workflow of this name, of which it is known that there is one."""
        return self._workflows[name]

    def outcome(self, name: str, output: bytes | None, error: bytes | None) -> Any:
        """Return a workflow's result, or raise its error.

        Args:
            name: The workflow's; where this process has none of the name, what needs no
                annotations can be read all the same.
            output: Its result, encoded.
            error: Its error, encoded.

        Raises:
            DecodeError: It cannot be read in this process.
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
        """Return all names, and those that need their request; callable on any thread."""
        definitions = list(self._workflows.values())
        bound = frozenset(definition.name for definition in definitions if definition.ambient)
        return frozenset(definition.name for definition in definitions), bound

    def add(self, definition: Definition) -> None:
        """Take note of a function, to be prepared before a recorded value is read."""
        self._unprepared.append(definition)
        self._bare[definition.decorated] = f"{definition.kind} {definition.name!r}"

    def bare(self, function: object) -> str | None:
        """Return what a function is without its decorator: a call of it is not durable."""
        return self._bare.get(function) if inspect.isroutine(function) else None

    def run_checks(self) -> None:
        """Call the checks before a start.

        Raises:
            DurableUsageError: One of them has found a mistake in the application.
        """
        for check in self.checks:
            check()

    def prepare(self) -> None:
        """Resolve the annotations of all functions: any of them may name a recorded class."""
        if not self._unprepared:
            return
        # Invariant: prepared first and taken off the list after. A thread that finds the list
        # empty reads recorded values at once.
        with self.preparing:
            while self._unprepared:
                self._unprepared[0].prepare()
                del self._unprepared[0]

    def add_ambient_rule(
        self, rule: AmbientParameter, *, answering: AmbientParameter | None = None
    ) -> None:
        """Let a framework's adapter say which parameters the framework fills.

        Args:
            rule: Tells those.
            answering: Tells those among them that the request's answer is made of.
        """
        self._ambient_rules.append(rule)
        if answering is not None:
            self._answering_rules.append(answering)

    def is_ambient(self, parameter: inspect.Parameter, hint: object) -> bool:
        """Tell whether a parameter is filled anew for every request."""
        return any(rule(parameter, hint) for rule in self._ambient_rules)

    def is_answering(self, parameter: inspect.Parameter, hint: object) -> bool:
        """Tell whether a request's answer is made of a parameter."""
        return any(rule(parameter, hint) for rule in self._answering_rules)

    def digest(
        self, definition: Definition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ArgumentDigest:
        """Return a digest of a step's arguments, equal for those that mean the same.

        What cannot be recorded, a client or a connection say, counts by its class.
        """
        if definition.ambient:
            args, kwargs = definition.recorded_arguments(args, kwargs)
        about = definition.defaults, definition.positional
        return self._digest(
            lambda canonical: canonical.arguments(args, kwargs, *about),
            lambda: self._former_arguments(args, kwargs),
        )

    def digest_of_input(self, workflow: WorkflowRecord) -> ArgumentDigest:
        """Return a digest of the arguments that a workflow of ours is started with."""
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
        """Return the arguments as versions before have digested them."""
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
    """Tell whether a function is the same one, made again by a reload or a second call."""
    return (known.__module__, known.__qualname__) == (new.__module__, new.__qualname__)
