"""Kinds of classes, and the classes that type hints name."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from types import FunctionType, SimpleNamespace
from typing import Any

__all__ = [
    "function_hints",
    "is_mapped",
    "is_named_tuple",
    "is_pydantic_model",
    "kind_of",
    "members_of",
    "named_classes",
    "resolved_hints",
]


@functools.lru_cache(maxsize=4096)
def kind_of(cls: type) -> str | None:
    """Return which kind of recordable class one is, as the log calls it; ``None`` if it is none."""
    if is_mapped(cls):
        return None
    if issubclass(cls, enum.Enum):
        return None if cls in _BASES else "flag" if issubclass(cls, enum.Flag) else "enum"
    for kind, is_kind in _KINDS.items():
        if is_kind(cls):
            return kind
    return None


def is_named_tuple(cls: type) -> bool:
    """Tell whether a class was made by ``NamedTuple`` or ``namedtuple``."""
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def is_pydantic_model(cls: type) -> bool:
    """Tell whether a class is a pydantic model, without importing pydantic."""
    return hasattr(cls, "__pydantic_core_schema__") and hasattr(cls, "model_fields")


def is_mapped(cls: type) -> bool:
    """Tell whether objects of a class are rows of SQLAlchemy's ORM."""
    return hasattr(cls, "__mapper__")


def members_of(cls: Any) -> list[str]:
    """Return the names of a recordable class's fields or members."""
    kind = kind_of(cls)
    if kind in {"enum", "flag"}:
        return list(cls.__members__)
    if kind == "namedtuple":
        return list(cls._fields)
    if kind == "model":
        return list(cls.model_fields)
    if kind == "struct":
        return list(cls.__struct_fields__)
    if kind == "attrs":
        return [field.name for field in cls.__attrs_attrs__]
    return [field.name for field in dataclasses.fields(cls)] if kind == "dataclass" else []


def _is_pydantic_url(cls: type) -> bool:
    return cls.__module__ == "pydantic.networks" and hasattr(cls, "unicode_string")


_BASES = frozenset({enum.Enum, enum.Flag, enum.IntEnum, enum.IntFlag, enum.StrEnum})
_KINDS: dict[str, Callable[[type], bool]] = {
    "url": _is_pydantic_url,
    "namedtuple": is_named_tuple,
    "model": is_pydantic_model,
    "dataclass": dataclasses.is_dataclass,
    "struct": lambda cls: hasattr(cls, "__struct_fields__"),
    "attrs": lambda cls: hasattr(cls, "__attrs_attrs__"),
}


def named_classes(hint: object) -> Iterator[type]:
    """Yield the classes that a hint names; those that their members name are not looked at."""
    # Compared by identity: hints need not be hashable, and aliases may name themselves.
    seen: dict[int, object] = {}
    waiting = [hint]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, type):
            yield each
        waiting.extend(reversed(_parts_of(each)))


def function_hints(function: FunctionType) -> dict[str, object]:
    """Return a function's type hints by parameter; those that cannot be resolved are left out.

    Classes local to the function that defines it are found where it refers to them.
    """
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    local_names = {name: cell.cell_contents for name, cell in closure.items() if _is_filled(cell)}
    return {
        name: hint
        for name, annotation in inspect.get_annotations(function).items()
        for hint in _resolve(annotation, function.__globals__, local_names)
    }


def resolved_hints(cls: type) -> list[object]:
    """Return the hints of a class's members, inherited ones included."""
    hints = [
        hint
        for base in cls.__mro__
        for annotation in inspect.get_annotations(base).values()
        for hint in _resolve(annotation, _names_around(base), {cls.__name__: cls})
    ]
    if is_pydantic_model(cls):
        fields: dict[str, Any] = cls.model_fields  # type: ignore[attr-defined]
        hints += [field.annotation for field in fields.values()]
    return hints


def _parts_of(hint: object) -> list[object]:
    if isinstance(hint, enum.Enum):
        return [type(hint)]  # of a `Literal`
    if isinstance(hint, type) and typing.is_typeddict(hint):
        return resolved_hints(hint)
    parts = [typing.get_origin(hint), *typing.get_args(hint)]
    # The type behind a `NewType` or a `TypeAliasType`.
    for name in ("__supertype__", "__value__"):
        try:
            parts.append(getattr(hint, name, None))
        except Exception:  # noqa: S112  an alias may name what is not there
            continue
    return parts


def _names_around(cls: type) -> dict[str, Any]:
    return vars(sys.modules.get(cls.__module__) or SimpleNamespace())


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  the access is the question
    except ValueError:
        return False
    return True


def _resolve(annotation: object, names: dict[str, Any], local_names: dict[str, Any]) -> list[Any]:
    """Return the annotation as an object in a list, an empty list if a name is missing."""
    holder = SimpleNamespace(__annotations__={"hint": annotation})
    try:
        hints = typing.get_type_hints(holder, names, local_names, include_extras=True)
    except Exception:
        return []
    return list(hints.values())
