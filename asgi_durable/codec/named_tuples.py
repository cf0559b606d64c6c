"""Named tuples by the names of their fields.

A plain array would give a value to another field once the code puts one between them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from asgi_durable.codec.hints import classes_in
from asgi_durable.codec.types import is_named_tuple

__all__ = ["Forms", "by_name"]

_UNIONS = (typing.Union, types.UnionType)

# With arguments that are known at run time alone.
_DICT: Any = dict
_TUPLE: Any = tuple

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Forms:
    """How values of a hint with named tuples are written.

    Attributes:
        hint: What is read: objects stand in the places of the named tuples.
        pack: Turns a value into what is written.
        unpack: Turns what is read into a value.
    """

    hint: Any
    pack: Convert
    unpack: Convert


def by_name(hint: Any) -> Forms:
    """Return how values of a hint are written.

    Raises:
        TypeError: A named tuple is in a place that is not looked at, a field of a class say.
    """
    if isinstance(hint, type) and is_named_tuple(hint):
        return _of_named_tuple(hint)
    if not any(map(is_named_tuple, classes_in(hint))):
        return Forms(hint, _as_it_is, _as_it_is)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return _of_optional(arguments)
    if origin is dict:
        member = by_name(arguments[1])
        return Forms(
            _DICT[arguments[0], member.hint],
            _values(member.pack),
            _values(member.unpack),
        )
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        member = by_name(arguments[0])
        inner: Any = origin[(member.hint, ...) if origin is tuple else member.hint]
        return Forms(inner, _items(member.pack, origin), _items(member.unpack, origin))
    if origin is tuple:
        members = [by_name(argument) for argument in arguments]
        packs, unpacks = [m.pack for m in members], [m.unpack for m in members]
        return Forms(_TUPLE[tuple(m.hint for m in members)], _each(packs), _each(unpacks))
    raise TypeError(hint)


def _of_optional(arguments: tuple[Any, ...]) -> Forms:
    members = [argument for argument in arguments if argument is not type(None)]
    if len(members) != 1:
        raise TypeError(arguments)
    member = by_name(members[0])
    return Forms(member.hint | None, _unless_none(member.pack), _unless_none(member.unpack))


def _of_named_tuple(cls: Any) -> Forms:
    hints = typing.get_type_hints(cls)
    members = {name: by_name(hints.get(name, Any)) for name in cls._fields}
    fields: list[Any] = [
        (name, member.hint, msgspec.field(default_factory=_constant(cls._field_defaults[name])))
        if name in cls._field_defaults
        else (name, member.hint)
        for name, member in members.items()
    ]
    # Its fields have no defaults where they are not the last, and names of their own.
    stand_in = msgspec.defstruct(cls.__name__, fields, kw_only=True)
    packs, unpacks = [m.pack for m in members.values()], [m.unpack for m in members.values()]

    def pack(value: Any) -> Any:
        if type(value) is not cls:
            msg = f"a {type(value).__name__}, not a {cls.__name__}"
            raise TypeError(msg)
        return dict(zip(members, map(_call, packs, value), strict=True))

    def unpack(read: Any) -> Any:
        values = (getattr(read, name) for name in members)
        return tuple.__new__(cls, map(_unpacked, unpacks, values))

    return Forms(stand_in, pack, unpack)


def _unpacked(unpack: Convert, value: Any) -> Any:
    # A default is one of the code's own, and no stand-in.
    return value if isinstance(value, tuple) and is_named_tuple(type(value)) else unpack(value)


def _call(convert: Convert, value: Any) -> Any:
    return convert(value)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _as_it_is(value: Any) -> Any:
    return value


def _unless_none(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _values(convert: Convert) -> Convert:
    return lambda value: {key: convert(item) for key, item in value.items()}


def _items(convert: Convert, build: Callable[[Any], Any]) -> Convert:
    def converted(value: Any) -> Any:
        _refuse_other(value, build)
        return build(map(convert, value))

    return converted


def _each(converts: list[Convert]) -> Convert:
    return lambda value: tuple(map(_call, converts, value))


def _refuse_other(value: object, kind: Any) -> None:
    if type(value) is not kind:
        msg = f"a {type(value).__name__}, not a {kind.__name__}"
        raise TypeError(msg)
