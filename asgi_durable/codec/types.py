"""Which classes may appear in the step log, found from the annotations that name them."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from types import FunctionType, SimpleNamespace
from typing import Any

__all__ = [
    "TypeRegistry",
    "function_hints",
    "is_named_tuple",
    "is_pydantic_model",
    "is_pydantic_url",
]


class TypeRegistry:
    """Classes by name and names by class."""

    def __init__(self) -> None:
        self._by_name: dict[str, type] = {}
        self._names: dict[type, str] = {}

    def name_of(self, cls: type) -> str | None:
        """Return the name a class is recorded under, ``None`` if it is not registered."""
        return self._names.get(cls)

    def find(self, name: str) -> type | None:
        """Return the registered class of this name."""
        return self._by_name.get(name)

    def register(self, hint: object) -> None:
        """Register every recordable class that a type hint names, members included."""
        if isinstance(hint, type) and _is_recordable(hint):
            self._register_class(hint)
        for argument in typing.get_args(hint):
            self.register(argument)

    def _register_class(self, cls: type) -> None:
        if cls in self._names:
            return
        name = f"{cls.__module__}:{cls.__qualname__}"
        # A class of a reloaded module, or made anew in a function, replaces its elder.
        self._by_name[name] = cls
        self._names[cls] = name
        for hint in _hints_of(cls, cls.__module__):
            self.register(hint)


def is_named_tuple(cls: type) -> bool:
    """Tell whether a class was made by ``NamedTuple`` or ``namedtuple``."""
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def is_pydantic_model(cls: type) -> bool:
    """Tell whether a class is a pydantic model, without importing pydantic."""
    return hasattr(cls, "__pydantic_core_schema__") and hasattr(cls, "model_fields")


def is_pydantic_url(cls: type) -> bool:
    """Tell whether a class is one of pydantic's URLs, ``HttpUrl`` say."""
    return cls.__module__ == "pydantic.networks" and hasattr(cls, "unicode_string")


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


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  the access is the question
    except ValueError:
        return False
    return True


def _is_recordable(cls: type) -> bool:
    return (
        dataclasses.is_dataclass(cls)
        or is_pydantic_model(cls)
        or is_pydantic_url(cls)
        or is_named_tuple(cls)
        or (issubclass(cls, enum.Enum) and cls is not enum.Enum)
    )


def _hints_of(cls: type, module: str) -> list[object]:
    """Return the hints of a class's members, inherited ones included."""
    if is_pydantic_model(cls):
        fields: dict[str, Any] = cls.model_fields  # type: ignore[attr-defined]
        return [field.annotation for field in fields.values()]
    names = vars(inspect.getmodule(cls) or SimpleNamespace())
    return [
        hint
        for base in cls.__mro__
        for annotation in inspect.get_annotations(base).values()
        for hint in _resolve(annotation, names, {cls.__name__: cls, "module": module})
    ]


def _resolve(annotation: object, names: dict[str, Any], local_names: dict[str, Any]) -> list[Any]:
    """Return the annotation as an object in a list, an empty list if a name is missing."""
    holder = SimpleNamespace(__annotations__={"hint": annotation})
    try:
        hints = typing.get_type_hints(holder, names, local_names, include_extras=True)
    except Exception:
        return []
    return list(hints.values())
