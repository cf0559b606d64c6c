"""Values that come back through their hint for certain, so that nothing needs to be compared.

A hint that JSON tells from all others (``str``, ``int``, ``bool``, ``None``) gives back what was
written, if that is of exactly this class. ``float`` is none of them: NaN becomes ``null``.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

from asgi_durable.codec.typed.hints import is_union

__all__ = ["certainty_of"]

IsCertain = Callable[[Any], bool]

_CERTAIN: frozenset[type] = frozenset({str, int, bool, type(None)})
_NONE = type(None)
_NAMES = frozenset({str})
# Of one class; there are more where it has many optional fields.
MAX_SHAPES = 64


def certainty_of(hint: Any) -> IsCertain:
    """Return what tells whether a value that was read by a hint is the one that was written."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is dict or (origin is dict and arguments[0] is str):
        return _of_dict(_kinds_of(arguments[1] if arguments else Any))
    if hint is list or origin is list:
        return _of_list(arguments[0] if arguments else Any)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _of_dataclass(hint)
    return _is_never_certain


def _kinds_of(hint: Any) -> frozenset[type]:
    """Return the classes whose values are certain where a hint allows them."""
    if hint in (Any, object):
        return _CERTAIN
    hints = typing.get_args(hint) if is_union(hint) else (hint,)
    return frozenset(
        kind
        for kind in _CERTAIN
        if any(each is kind or (each is None and kind is _NONE) for each in hints)
    )


def _of_dict(kinds: frozenset[type]) -> IsCertain:
    def is_certain(value: Any) -> bool:
        return (
            type(value) is dict
            and _NAMES.issuperset(map(type, value))
            and kinds.issuperset(map(type, value.values()))
        )

    return is_certain


def _of_list(item: Any) -> IsCertain:
    kinds, is_item_certain = _kinds_of(item), certainty_of(item)
    if is_item_certain is _is_never_certain:
        return lambda value: type(value) is list and kinds.issuperset(map(type, value))
    return lambda value: type(value) is list and all(map(is_item_certain, value))


def _of_dataclass(cls: type) -> IsCertain:
    fields = dataclasses.fields(cls)
    is_bare = cls.__dictoffset__ and not hasattr(cls, "__post_init__")
    if not is_bare or not all(field.init for field in fields):
        return _is_never_certain
    hints = typing.get_type_hints(cls)
    names = [field.name for field in fields]
    kinds = [_kinds_of(hints[name]) for name in names]
    shapes: set[tuple[type, ...]] = set()

    def is_certain(value: Any) -> bool:
        if type(value) is not cls:
            return False
        members = value.__dict__
        shape = (*map(type, members.values()),)
        if [*members] != names:
            return False
        if shape in shapes:
            return True
        if not all(kind in allowed for kind, allowed in zip(shape, kinds, strict=True)):
            return False
        if len(shapes) < MAX_SHAPES:
            shapes.add(shape)
        return True

    return is_certain


def _is_never_certain(_: Any) -> bool:
    return False
