"""Attributes that a value has beside its fields: they would not come back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Set as AbstractSet
from types import FunctionType, MemberDescriptorType
from typing import Any

from asgi_durable.codec.tagged.unrecordable import ORM_ADVICE, UnrecordableError

__all__ = ["refuse_lost_attributes"]

# The type of `Box[int]`, whose call makes `Box[int](1)`.
_OF_TYPING = {"__orig_class__"}
_METHODS = (FunctionType, classmethod, staticmethod)


def refuse_lost_attributes(value: Any, cls: type, fields: AbstractSet[str]) -> None:
    """Refuse a value with attributes that are no fields.

    The value of a ``cached_property`` is accepted: it is computed again when code asks for it.

    Raises:
        UnrecordableError: The value has such an attribute.
    """
    state = getattr(value, "__dict__", None)
    if state and not state.keys() <= fields:
        _refuse_lost(cls, state.keys() - fields)
    for name, member in _slots_of(cls):
        if name not in fields and _is_set(member, value):
            _refuse(cls, name)


def _refuse_lost(cls: type, names: AbstractSet[str]) -> None:
    if "_sa_instance_state" in names:
        raise UnrecordableError(cls, ORM_ADVICE)
    for name in sorted(names - _OF_TYPING):
        if not _is_computed(cls, name):
            _refuse(cls, name)


def _refuse(cls: type, name: str) -> None:
    """Refuse a value for an attribute that is no field."""
    reason = f": its attribute {name!r} is no field and would be lost"
    raise UnrecordableError(cls, f"{reason}; declare it as a field, or compute it in a property")


def _is_computed(cls: type, name: str) -> bool:
    """Tell whether an attribute keeps what a class's ``cached_property`` has computed."""
    attribute = inspect.getattr_static(cls, name, None)
    kind = type(attribute)
    return (
        hasattr(kind, "__get__")
        and not hasattr(kind, "__set__")
        and not isinstance(attribute, _METHODS)
    )


@functools.lru_cache(maxsize=4096)
def _slots_of(cls: type) -> tuple[tuple[str, Any], ...]:
    """Return the slots of a class, those of pydantic's and of Python's own left out."""
    return tuple(
        (name, member)
        for base in cls.__mro__
        if not base.__module__.startswith("pydantic.")
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    )


def _is_set(member: Any, value: object) -> bool:
    try:
        member.__get__(value)
    except AttributeError:
        return False
    return True
