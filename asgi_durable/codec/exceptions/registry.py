"""The classes of exceptions that may come back from the step log, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from asgi_durable.codec.exceptions.known import KNOWN
from asgi_durable.codec.raw_access import (
    base_names,
    bases_of,
    class_name,
    find_class,
    is_exception_class,
)
from asgi_durable.errors import DurableUsageError

__all__ = ["ExceptionRegistry", "FromData", "ToData", "Types"]

ToData = Callable[[Any], object]
FromData = Callable[[Any], BaseException]
_Rebuild = Callable[[type, Any], BaseException]


class Types(Protocol):
    """The classes that were registered for values."""

    def name_of(self, cls: type) -> str | None:
        """Return the name a class is recorded under, ``None`` if it is not registered."""

    def find(self, name: str) -> type | None:
        """Return the registered class of this name."""


class ExceptionRegistry:
    """Finds exception classes: those that are registered, and those of loaded modules."""

    def __init__(self, types: Types) -> None:
        self._types = types
        self._registered: dict[str, type] = {}
        self._aliases: dict[str, type] = {}
        self._functions = dict(KNOWN)
        self._of_builtins = False

    def register(
        self,
        cls: type[BaseException],
        *,
        to_data: ToData | None = None,
        from_data: FromData | None = None,
        aliases: Iterable[str] = (),
    ) -> None:
        """See :meth:`asgi_durable.Durable.register_exception`.

        Raises:
            DurableUsageError: It is no class of exceptions, one of the functions is missing, or
                an alias is not of the form ``"module:QualName"``.
        """
        if not is_exception_class(cls):
            msg = f"register_exception() takes a class that derives from Exception, got {cls!r}"
            raise DurableUsageError(msg)
        if (to_data is None) != (from_data is None):
            msg = f"register_exception({cls.__name__}) needs both to_data= and from_data=, or none"
            raise DurableUsageError(msg)
        aliases = [aliases] if isinstance(aliases, str) else list(aliases)
        for alias in aliases:
            if not all(alias.partition(":")):
                msg = f'an alias is "module:QualName", where the class was before; got {alias!r}'
                raise DurableUsageError(msg)
        name = class_name(cls)
        # A class of a reloaded module, or made anew in a function, replaces its elder.
        self._registered[name] = cls
        self._aliases.update(dict.fromkeys(aliases, cls))
        if to_data is not None and from_data is not None:
            self._functions[name] = (to_data, lambda _, data: from_data(data))
            self._of_builtins |= cls.__module__ == "builtins"

    def name_of(self, cls: type) -> str:
        """Return the name that a class is recorded under."""
        return self._types.name_of(cls) or class_name(cls)

    def find(self, name: str) -> type | None:
        """Return the class of this name, if it is one of exceptions; no code of it runs."""
        for found in (
            self._registered.get(name),
            find_class(name),
            self._aliases.get(name),
            self._types.find(name),
        ):
            if found is not None and is_exception_class(found):
                return found
        return None

    def recorded_class(self, cls: type) -> type | None:
        """Return the class that an exception of *cls* comes back as.

        It is the class itself where its name leads to it, or its first base that has functions
        here: botocore makes classes that nobody finds again.
        """
        if self.find(self.name_of(cls)) is cls:
            return cls
        for base in bases_of(cls):
            if class_name(base) in self._functions or class_name(base) in _STANDING_IN:
                return base if self.find(class_name(base)) is base else None
        return None

    def functions_of(self, cls: type) -> tuple[str, ToData, _Rebuild] | None:
        """Return the functions for a class or its first base that has some, and that one's name."""
        # Functions for one of Python's own exceptions are for all that derive from it.
        names = map(class_name, bases_of(cls)) if self._of_builtins else base_names(cls)
        for name in names:
            if name in self._functions:
                return (name, *self._functions[name])
        return None


# Libraries derive classes from these while they run, and nobody finds those again.
_STANDING_IN = frozenset({"botocore.exceptions:ClientError"})
