"""The fields of dataclasses, attrs classes and Structs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MemberDescriptorType
from typing import Any

import msgspec

__all__ = ["Fields", "fields_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a class.

    Attributes:
        names: Their names, in their order.
        name_set: The same names, as a set.
        defaults: The functions that make the defaults, by name.
        obstacle: Why the values of the class cannot be rebuilt, ``None`` if they can.
    """

    names: tuple[str, ...]
    name_set: frozenset[str]
    defaults: Mapping[str, Callable[[], Any]]
    obstacle: str | None


@functools.lru_cache(maxsize=4096)
def fields_of(cls: Any) -> Fields:
    """Return the fields of a class; a dataclass may be of the standard library or of pydantic."""
    if hasattr(cls, "__struct_fields__"):
        return _fields_of_struct(cls)
    if hasattr(cls, "__attrs_attrs__"):
        return _fields_of_attrs(cls)
    fields = dataclasses.fields(cls)
    of_pydantic = getattr(cls, "__pydantic_fields__", {})
    defaults = {}
    for field in fields:
        make = _default_of(field, of_pydantic.get(field.name))
        if make is not None:
            defaults[field.name] = make
    names = tuple(field.name for field in fields)
    return Fields(names, frozenset(names), defaults, _obstacle_in(cls, names))


def _fields_of_struct(cls: Any) -> Fields:
    fields = msgspec.structs.fields(cls)
    defaults: dict[str, Callable[[], Any]] = {}
    for field in fields:
        if field.default_factory is not msgspec.NODEFAULT:
            defaults[field.name] = field.default_factory
        elif field.default is not msgspec.NODEFAULT:
            defaults[field.name] = _constant(field.default)
    names = tuple(field.name for field in fields)
    # It can be made by its constructor alone, which is msgspec's unless it has such a method.
    has_code = any(
        name in vars(base)
        for base in cls.__mro__
        if base not in (msgspec.Struct, object)
        for name in ("__post_init__", "__init__", "__new__")
    )
    obstacle = ": its __post_init__ or constructor would run" if has_code else None
    return Fields(names, frozenset(names), defaults, obstacle)


def _fields_of_attrs(cls: Any) -> Fields:
    defaults: dict[str, Callable[[], Any]] = {}
    for field in cls.__attrs_attrs__:
        factory = getattr(field.default, "factory", None)
        if factory is not None and not field.default.takes_self:
            defaults[field.name] = factory
        # This value stands for no default.
        elif factory is None and repr(field.default) != "NOTHING":
            defaults[field.name] = _constant(field.default)
    names = tuple(field.name for field in cls.__attrs_attrs__)
    return Fields(names, frozenset(names), defaults, _obstacle_in(cls, names))


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _default_of(field: dataclasses.Field[Any], of_pydantic: Any) -> Callable[[], Any] | None:
    if of_pydantic is not None:
        # The dataclass's own default is what pydantic says of the field, not its value.
        if of_pydantic.is_required():
            return None
        return lambda: of_pydantic.get_default(call_default_factory=True)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    if field.default is not dataclasses.MISSING:
        return _constant(field.default)
    return None


def _obstacle_in(cls: Any, names: tuple[str, ...]) -> str | None:
    for name in names:
        attribute = inspect.getattr_static(cls, name, None)
        if _has_setter(type(attribute)) and not isinstance(attribute, MemberDescriptorType):
            return f": its field {name!r} is a {type(attribute).__name__}, whose code would run"
    try:
        object.__new__(cls)
    except TypeError:
        return ": it derives from a built-in class, whose content would be lost"
    return None


def _has_setter(cls: type) -> bool:
    return hasattr(cls, "__set__") or hasattr(cls, "__delete__")
