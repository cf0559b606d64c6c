"""Which classes may appear in the step log, under which names."""

from __future__ import annotations

import functools
import sys
import typing
from collections.abc import Iterable
from typing import Any

from asgi_durable.codec.tagged.unrecordable import ORM_ADVICE, UnrecordableError, advice_for
from asgi_durable.codec.types import (
    is_mapped,
    kind_of,
    members_of,
    named_classes,
    resolved_hints,
)
from asgi_durable.errors import DecodeError, DurableUsageError

__all__ = ["TypeRegistry", "refuse_unrecordable"]


class TypeRegistry:
    """Classes by name and names by class.

    A class is recorded as ``module:QualName``, or under the name that it was registered with.
    Several classes may be registered that have one ``module:QualName``: all but the one that
    the module leads to are refused when they are recorded, so that a row is never read as
    another class than it was written from.
    """

    def __init__(self) -> None:
        # By name, in the order of their registration; as keys, since threads may add to them.
        self._classes: dict[str, dict[type, None]] = {}
        # Names and aliases that were given.
        self._given: dict[str, type] = {}
        self._names: dict[type, str] = {}

    def name_of(self, cls: type) -> str | None:
        """Return the name a class is recorded under, ``None`` if it is not registered."""
        return self._names.get(cls)

    def find(self, name: str) -> type | None:
        """Return the registered class of this name.

        Raises:
            DecodeError: Several have it, and the module leads to none of them.
        """
        given = self._given.get(name)
        if given is not None:
            return given
        places = self._classes.get(name)
        if places is None:
            return None
        if len(places) == 1:
            return next(iter(places))
        classes = self._holders(name)
        if len(classes) == 1:
            return classes[0]
        current = _class_at(name)
        if current in classes:
            return current
        msg = f"the recorded class {name!r} is one of several here: {_describe_all(classes)}"
        raise DecodeError(msg)

    def recorded_name(self, cls: type) -> str:
        """Return the name a class is recorded under, and found again by.

        Raises:
            UnrecordableError: It is not registered, or its name leads to another class.
        """
        name = self._names.get(cls)
        if name is None:
            raise UnrecordableError(cls, advice_for(cls))
        given = self._given.get(name)
        if given is cls or (given is None and _class_at(name) is cls):
            return name
        others = [other for other in (given, _class_at(name)) if other not in (None, cls)]
        if others:
            raise UnrecordableError(
                cls, f": {name!r} leads to another class now, {_describe(others[0])}{_REMEDY}"
            )
        classes = self._holders(name)
        if len(classes) > 1:
            raise UnrecordableError(
                cls, f": several classes have this name, {_describe_all(classes)}{_REMEDY}"
            )
        return name

    def register(self, hint: object) -> None:
        """Register every recordable class that a type hint names, members included."""
        for cls in named_classes(hint):
            if cls not in self._names and kind_of(cls) is not None:
                self._add(cls)

    def register_as(self, cls: object, name: str | None, aliases: Iterable[str]) -> None:
        """Register a class under a name of its own, and under names that it had before.

        Raises:
            DurableUsageError: It is no recordable class, or a name is taken.
        """
        if not isinstance(cls, type) or kind_of(cls) is None:
            raise DurableUsageError(_no_class_message(cls))
        names = _checked_names(name, aliases)
        former = self._names.get(cls)
        if name is not None and former not in (None, name, _own_name(cls)):
            msg = f"{_path_of(cls)} is recorded as {former!r} already, not as {name!r}"
            raise DurableUsageError(msg)
        for each in names:
            self._refuse_taken(each, cls)
        self.register(cls)
        self._given |= dict.fromkeys(names, cls)
        if name is not None:
            self._names[cls] = name

    def _holders(self, name: str) -> list[type]:
        """Return the classes that live at a place; without those that are recorded otherwise.

        Where there are only such, they were recorded so before they were given their names.
        """
        classes = list(self._classes.get(name, ()))
        return [cls for cls in classes if self._names[cls] == name] or classes

    def _add(self, cls: type) -> None:
        name = _own_name(cls)
        # Invariant: what is found by its place has a name; other threads may look now.
        self._names[cls] = name
        self._classes.setdefault(name, {})[cls] = None
        for hint in resolved_hints(cls):
            self.register(hint)

    def _refuse_taken(self, name: str, cls: type) -> None:
        holders = [self._given.get(name), *self._classes.get(name, ())]
        for holder in holders:
            if holder not in (None, cls) and not _replaces(cls, holder):
                both = f"{_path_of(holder)} and {_path_of(cls)}"
                msg = f"two classes would be recorded as {name!r}: {both}"
                raise DurableUsageError(msg)


def refuse_unrecordable(hint: object) -> None:
    """Refuse a class of which no value can be recorded, however it is registered.

    Raises:
        DurableUsageError: It is one. Other type hints are none, and an exception is recorded
            without being registered.
    """
    if not isinstance(hint, type) or kind_of(hint) is not None:
        return
    is_known = issubclass(hint, BaseException) or typing.is_typeddict(hint)
    if not is_known and hint.__module__.partition(".")[0] not in sys.stdlib_module_names:
        raise DurableUsageError(_no_class_message(hint))


_REMEDY = "; give each a name of its own: durable.register_type(…, name=…)"


def _own_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_at(name: str) -> type | None:
    """Return the class that a loaded module has under this name; no attribute is computed."""
    if "[" in name:
        # pydantic puts parametrised models there, the first of several that have one name.
        return None
    module_name, parts = _parts_of(name)
    found: Any = sys.modules.get(module_name)
    for part in parts:
        # `None` has no `__dict__`, as many attributes.
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) else None


@functools.lru_cache(maxsize=4096)
def _parts_of(name: str) -> tuple[str, list[str]]:
    module_name, _, qualified_name = name.partition(":")
    return module_name, qualified_name.split(".")


def _replaces(cls: type, former: type) -> bool:
    """Tell whether a class is the definition of the former one made again: by a reload."""
    return _own_name(cls) == _own_name(former) and _class_at(_own_name(cls)) is cls


def _describe_all(classes: Iterable[type]) -> str:
    return " and ".join(map(_describe, classes))


def _describe(cls: type) -> str:
    """Return a class's name and members: the name alone tells classes of one name not apart."""
    return f"{_path_of(cls)}({', '.join(members_of(cls))})"


def _checked_names(name: str | None, aliases: Iterable[str]) -> list[str]:
    names = [aliases] if isinstance(aliases, str) else list(aliases)
    if name is not None:
        names.insert(0, name)
    for each in names:
        if not isinstance(each, str) or not each:
            msg = f"a class is recorded under text such as 'order', not under {each!r}"
            raise DurableUsageError(msg)
    return names


def _no_class_message(cls: object) -> str:
    if not isinstance(cls, type):
        return f"one class can be given a name or aliases, and {cls!r} is none"
    if issubclass(cls, BaseException):
        return f"{_path_of(cls)} is an exception: call durable.register_exception()"
    advice = ORM_ADVICE if is_mapped(cls) else ""
    kinds = "dataclasses, enums, named tuples and pydantic models"
    return f"{_path_of(cls)} cannot be registered: {kinds} are recorded{advice}"
