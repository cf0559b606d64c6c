"""How values of an application's classes are taken apart for the step log, and rebuilt.

Nothing of a class runs when a value is rebuilt but the factories of fields that are new in the
code: no constructor, no ``__post_init__``, no property, no ``__setattr__``, no validator.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from asgi_durable.codec.tagged.dataclass_fields import Fields, fields_of
from asgi_durable.codec.tagged.lost_attributes import refuse_lost_attributes
from asgi_durable.codec.tagged.model_values import model_content, rebuild_model
from asgi_durable.codec.tagged.unrecordable import UnrecordableError
from asgi_durable.codec.types import kind_of
from asgi_durable.errors import DecodeError

__all__ = ["CLASS_TAGS", "content_of", "rebuild"]


def content_of(value: Any, cls: Any) -> tuple[str, object]:
    """Return the kind of a recordable class's value, and what it is rebuilt from.

    Raises:
        UnrecordableError: The value would not come back equal.
    """
    tag = kind_of(cls)
    if tag is None:
        # For example, a class that was mapped after it had been registered.
        raise UnrecordableError(cls, ": it is no dataclass, enum, named tuple or model any more")
    return tag, _CONTENTS[tag](value, cls)


def rebuild(tag: str, cls: type, content: Any, names: Any = None) -> Any:
    """Return the value that :func:`content_of` took apart, as the class is now.

    Args:
        tag: The kind that the class had.
        cls: The class.
        content: The recorded content of the value.
        names: The names of a named tuple's members; earlier versions did not record them.

    Raises:
        DecodeError: It has a member that the class lacks, or the other way round.
    """
    kind = kind_of(cls)
    if kind != tag and not (tag == "enum" and kind == "flag"):
        msg = f"it was recorded as a {tag}, and {_path_of(cls)} is {_KINDS[kind]} now"
        raise DecodeError(msg)
    if names is not None and tag == "namedtuple":
        content = dict(zip(_checked(names, list, cls), _checked(content, list, cls), strict=True))
    return _REBUILDERS[tag](cls, content)


def _flag_content(value: Any, cls: Any) -> int:
    number: int = value._value_
    known = cls._value2member_map_.get(number)
    # Some versions of Python make a combination of unknown bits anew each time.
    if known is not value and (known is not None or _flag_of(cls, number) is None):
        raise UnrecordableError(cls, f": its value {number} leads to another member")
    return number


def _enum_content(value: Any, cls: Any) -> str:
    name: str = value._name_
    if cls._member_map_.get(name) is not value:
        raise UnrecordableError(cls, f": {name!r} is no member that the class defines")
    return name


def _url_content(value: Any, cls: Any) -> str:
    text = str(value)
    try:
        is_same = cls(text) == value
    except ValueError:
        is_same = False
    if not is_same:
        raise UnrecordableError(cls, ": its text leads to no such URL; return a str")
    return text


def _named_tuple_content(value: Any, cls: Any) -> list[Any]:
    items = list(tuple.__iter__(value))
    if len(items) != len(cls._fields):
        raise UnrecordableError(cls, f": it has {len(items)} members, not {len(cls._fields)}")
    refuse_lost_attributes(value, cls, frozenset())
    return items


def _dataclass_content(value: Any, cls: Any) -> dict[str, Any]:
    fields = fields_of(cls)
    if fields.obstacle is not None:
        raise UnrecordableError(cls, fields.obstacle)
    content: dict[str, Any] = {}
    for name in fields.names:
        try:
            # As it is stored: a class may show it otherwise, and it is put back unseen.
            content[name] = object.__getattribute__(value, name)
        except AttributeError:
            raise UnrecordableError(cls, f": its field {name!r} is not set") from None
    refuse_lost_attributes(value, cls, fields.name_set)
    return content


def _rebuild_enum(cls: Any, name: Any) -> Any:
    member = cls._member_map_.get(_checked(name, str, cls))
    if member is None:
        msg = f"{_path_of(cls)} has no member {name!r} any more"
        raise DecodeError(msg)
    return member


def _rebuild_flag(cls: Any, number: Any) -> Any:
    member = _flag_of(cls, _checked(number, int, cls))
    if member is None:
        msg = f"{_path_of(cls)} has no members for the value {number!r}"
        raise DecodeError(msg)
    return member


def _flag_of(cls: Any, number: int) -> Any:
    """Return the member or combination of this value, ``None`` if a flag has none."""
    member = cls._value2member_map_.get(number)
    if member is None and cls._member_type_ in {object, int}:
        # Past `__call__` and a `_missing_` of the class's own.
        combine: Any = enum.Flag._missing_
        try:
            member = combine.__func__(cls, number)
        except ValueError:
            return None
    return member if type(member) is cls and member._value_ == number else None


def _rebuild_url(cls: Any, text: Any) -> Any:
    # pydantic's own class, and of an application's nothing.
    return cls(_checked(text, str, cls))


def _rebuild_named_tuple(cls: Any, members: Any) -> Any:
    fields, defaults = cls._fields, getattr(cls, "_field_defaults", {})
    if type(members) is not dict:
        if len(_checked(members, list, cls)) > len(fields):
            # Which one was removed is unknown: their names were not recorded.
            msg = f"more members of {_path_of(cls)} are recorded than its {len(fields)} fields"
            raise DecodeError(msg)
        members = dict(zip(fields, members, strict=False))
    for name in fields:
        if name not in members and name not in defaults:
            msg = f"no field {name!r} of {_path_of(cls)} is recorded, and it has no default"
            raise DecodeError(msg)
    items = [members[name] if name in members else defaults[name] for name in fields]
    return tuple.__new__(cls, items)


def _rebuild_dataclass(cls: Any, members: Any) -> Any:
    fields = fields_of(cls)
    if fields.obstacle is not None:
        msg = f"{_path_of(cls)} cannot be rebuilt{fields.obstacle}"
        raise DecodeError(msg)
    members = _checked(members, dict, cls)
    found = {name: _member(cls, fields, members, name) for name in fields.names}
    if hasattr(cls, "__struct_fields__"):
        # msgspec's own constructor: the class has none.
        return cls(**found)
    value = object.__new__(cls)
    for name, member in found.items():
        # Past __init__, and past the guard of a frozen dataclass.
        object.__setattr__(value, name, member)
    return value


def _member(cls: type, fields: Fields, members: dict[str, Any], name: str) -> Any:
    if name in members:
        return members[name]
    if name in fields.defaults:
        return fields.defaults[name]()
    msg = f"no field {name!r} of {_path_of(cls)} is recorded, and it has no default"
    raise DecodeError(msg)


def _checked(content: Any, kind: type, cls: type) -> Any:
    if type(content) is not kind:
        # It is not shown: that may run an object's own code.
        msg = f"{_path_of(cls)} cannot be rebuilt from a {type(content).__name__}"
        raise DecodeError(msg)
    return content


def _path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


_KINDS = {
    None: "none of these",
    "attrs": "an attrs class",
    "dataclass": "a dataclass",
    "struct": "a Struct",
    "enum": "an enum",
    "flag": "a flag",
    "model": "a pydantic model",
    "namedtuple": "a named tuple",
    "url": "a URL",
}

_CONTENTS: dict[str, Callable[[Any, Any], object]] = {
    "flag": _flag_content,
    "enum": _enum_content,
    "url": _url_content,
    "namedtuple": _named_tuple_content,
    "model": model_content,
    "attrs": _dataclass_content,
    "dataclass": _dataclass_content,
    "struct": _dataclass_content,
}

_REBUILDERS: dict[str, Callable[[Any, Any], Any]] = {
    "enum": _rebuild_enum,
    "flag": _rebuild_flag,
    "url": _rebuild_url,
    "namedtuple": _rebuild_named_tuple,
    "model": rebuild_model,
    "attrs": _rebuild_dataclass,
    "dataclass": _rebuild_dataclass,
    "struct": _rebuild_dataclass,
}
CLASS_TAGS = frozenset(_REBUILDERS)
