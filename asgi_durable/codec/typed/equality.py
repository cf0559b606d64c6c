"""Whether a value that came back is the one that was written: equal, and of the same classes."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import ipaddress
import math
import operator
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from asgi_durable.codec.types import is_pydantic_model

__all__ = ["comparison_of", "first_difference", "has_no_number", "is_same"]

# Of these two that are equal are the same, down to what can be seen of them.
_LEAVES = frozenset({str, int, bool, float, type(None), bytes, uuid.UUID, datetime.date})
_NAMES = {str}
_EQUAL = _LEAVES | {
    datetime.timedelta,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    type(pathlib.Path()),
}
_PYDANTIC = operator.attrgetter(
    "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"
)

_NO_OTHERS = (None, None)

Step = str | int
Difference = tuple[tuple[Step, ...], object, object]
_NOTHING = object()


def is_same(value: Any, other: Any) -> bool:
    """Tell whether two values are equal and of the same classes, members included."""
    if type(value) is not type(other):
        return False
    kind: Any = type(value)
    if kind in _EQUAL:
        return bool(value == other)
    compare = _COMPARED.get(kind)
    return compare(value, other) if compare is not None else _comparison_of(kind)(value, other)


def comparison_of(hint: object) -> Callable[[Any, Any], bool]:
    """Return :func:`is_same`, faster for what is mostly of the class that a hint is."""
    if not isinstance(hint, type) or hint in _EQUAL:
        return is_same
    compare = _COMPARED.get(hint) or _comparison_of(hint)

    def is_same_or_other(value: Any, other: Any) -> bool:
        if type(value) is hint is type(other):
            return compare(value, other)
        return is_same(value, other)

    return is_same_or_other


def first_difference(value: Any, other: Any, path: tuple[Step, ...] = ()) -> Difference | None:
    """Return where two values differ first, and what is there; ``None`` if they are the same."""
    if is_same(value, other):
        return None
    if type(value) is type(other):
        for step, member, counterpart in _pairs(value, other):
            found = first_difference(member, counterpart, (*path, step))
            if found is not None:
                return found
    return path, value, other


def has_no_number(value: Any) -> bool:
    """Tell whether a value holds a float that is infinite or none, which JSON does not have."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return any(has_no_number(member) for member in _parts_of(value))


def _parts_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, (str, bytes, int, enum.Enum)) or value is None:
        return []
    kind: Any = type(value)
    slots = [getattr(value, name, None) for name in _slots_of(kind)]
    return [*slots, *(_members(value) or {}).values()]


def _is_same_sequence(value: Any, other: Any) -> bool:
    if len(value) != len(other):
        return False
    kinds = {*map(type, value)}
    if len(kinds) == 1 and kinds <= _LEAVES:
        return bool(value == other) and kinds == {*map(type, other)}
    return all(map(is_same, value, other))


def _is_same_dict(value: dict[Any, Any], other: dict[Any, Any]) -> bool:
    if {*map(type, value)} == _NAMES == {*map(type, other)}:
        return _are_same_members(value, other)
    return _is_same_sequence([*value], [*other]) and all(
        map(is_same, value.values(), other.values())
    )


def _are_same_members(value: dict[str, Any], other: dict[str, Any]) -> bool:
    kinds = [*map(type, value.values())]
    if _LEAVES.issuperset(kinds):
        # Where the order differs this may say no, and nothing worse.
        return value == other and kinds == [*map(type, other.values())]
    return [*value] == [*other] and all(map(is_same, value.values(), other.values()))


def _is_same_set(value: Any, other: Any) -> bool:
    if value != other:
        return False
    counterparts = {item: item for item in other}
    return all(is_same(item, counterparts[item]) for item in value)


def _is_same_time(value: Any, other: Any) -> bool:
    zones = value.tzinfo, other.tzinfo
    return bool(
        value == other
        and value.fold == other.fold
        and (zones[0] is zones[1] or _is_same_zone(*zones))
    )


def _is_same_zone(zone: object, other: object) -> bool:
    is_fixed = type(zone) is datetime.timezone and type(other) is datetime.timezone
    # Their arguments: a name is no part of their equality.
    return is_fixed and repr(zone) == repr(other)


@functools.lru_cache(maxsize=1024)
def _comparison_of(kind: Any) -> Callable[[Any, Any], bool]:
    """Return what compares two instances of a class."""
    if issubclass(kind, enum.Flag):
        # Not by identity: some versions of Python make a combination anew each time.
        return lambda value, other: bool(value._value_ == other._value_)
    if issubclass(kind, enum.Enum):
        return operator.is_
    if issubclass(kind, tuple):
        return _is_same_sequence
    if is_pydantic_model(kind):
        return _is_same_model
    if not _slots_of(kind):
        return _is_same_by_members if kind.__dictoffset__ else operator.eq
    return _is_same_by_slots


def _is_same_model(value: Any, other: Any) -> bool:
    if not _is_same_by_members(value, other):
        return False
    parts, others = _PYDANTIC(value), _PYDANTIC(other)
    # The names of the fields that were set; most models have nothing else.
    return bool(parts[0] == others[0]) and (
        parts[1:] == others[1:] == _NO_OTHERS or all(map(is_same, parts[1:], others[1:]))
    )


def _is_same_by_members(value: Any, other: Any) -> bool:
    members, others = value.__dict__, other.__dict__
    if len(members) != len(others):
        members = _lasting(type(value), members, others)
    return _are_same_members(members, others)


def _is_same_by_slots(value: Any, other: Any) -> bool:
    kind: Any = type(value)
    names = _slots_of(kind)
    ours = [getattr(value, name, _NOTHING) for name in names]
    theirs = [getattr(other, name, _NOTHING) for name in names]
    if not _is_same_sequence(ours, theirs):
        return False
    members = _members(value)
    return members is None or _is_same_by_members(value, other)


def _members(value: object) -> dict[str, Any] | None:
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else None


def _lasting(kind: type, members: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return an object's members without what its class computes again when it is asked.

    Nor does what typing notes on it count, with which parameters the class was called.
    """
    return {
        name: member
        for name, member in members.items()
        if name in others
        or not (
            name == "__orig_class__"
            or isinstance(getattr(kind, name, None), functools.cached_property)
        )
    }


@functools.lru_cache(maxsize=1024)
def _slots_of(kind: Any) -> tuple[str, ...]:
    """Return the names of a class's members that are in no instance's dictionary."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else tuple(slots)
        found |= dict.fromkeys(_mangled(base, name) for name in names)
    hidden = ("__dict__", "__weakref__")
    return tuple(name for name in found if name not in hidden)


def _mangled(cls: type, name: str) -> str:
    if name.startswith("__") and not name.endswith("__"):
        return f"_{cls.__name__.lstrip('_')}{name}"
    return name


def _pairs(value: Any, other: Any) -> Iterator[tuple[Step, Any, Any]]:
    """Return the members of two values of one class, as far as both have them."""
    if isinstance(value, dict):
        yield from ((str(key), value[key], other[key]) for key in value if key in other)
    elif isinstance(value, (list, tuple)):
        pairs = zip(value, other, strict=False)
        yield from ((index, *pair) for index, pair in enumerate(pairs))
    else:
        kind: Any = type(value)
        names = {**dict.fromkeys(_slots_of(kind)), **(_members(value) or {})}
        for name in names:
            yield name, getattr(value, name, _NOTHING), getattr(other, name, _NOTHING)


_COMPARED: Mapping[type, Callable[[Any, Any], bool]] = {
    list: _is_same_sequence,
    tuple: _is_same_sequence,
    dict: _is_same_dict,
    set: _is_same_set,
    frozenset: _is_same_set,
    datetime.datetime: _is_same_time,
    datetime.time: _is_same_time,
    decimal.Decimal: lambda value, other: str(value) == str(other),
}
