"""Named tuples by the names of their fields, in JSON that others write and read by place.

By place a value would be given to another field once the code puts one between them.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from asgi_durable.codec.typed.hints import is_union
from asgi_durable.codec.types import is_named_tuple, is_pydantic_model

__all__ = ["NamedFields"]

# Converts the JSON of one hint: members by name if True, by place if False.
Turn = Callable[[Any, bool], Any]

_PATH = re.compile(r"\$[^`]*")
_STEP = re.compile(r"\.[^.\[]+|\[[^\]]*\]")
_read = msgspec.json.Decoder().decode
_write = msgspec.json.Encoder().encode


class NamedFields:
    """Turns arrays into objects where a hint has named tuples, and back.

    Args:
        hint: Names at least one.

    Raises:
        TypeError: One is where JSON does not tell of which type a value is.
        RecursionError: A class has members of its own class.
    """

    def __init__(self, hint: object) -> None:
        turn = _turn_of(hint)
        if turn is None:
            raise TypeError(hint)
        self._hint = hint
        self._turn = turn

    def named(self, data: bytes) -> bytes:
        """Return JSON with objects in the places of named tuples."""
        return _write(self._turn(_read(data), True))

    def placed(self, data: bytes) -> bytes:
        """Return JSON with arrays there again, in the order that the fields have now.

        Raises:
            ValueError: A field is not there, and has no default.
        """
        return _write(self._turn(_read(data), False))

    def with_names(self, message: str) -> str:
        """Return a message about the JSON by place, with names in its path: ``$[0]`` is ``$.x``."""
        return _PATH.sub(lambda found: _named_path(self._hint, found[0]), message, count=1)


def _named_path(hint: Any, path: str) -> str:
    named = "$"
    for step in _STEP.findall(path):
        cls = _class_of(hint)
        if is_named_tuple(cls) and step[1:-1].isdigit():
            name = cls._fields[int(step[1:-1])]
            named, hint = f"{named}.{name}", typing.get_type_hints(cls).get(name)
        else:
            arguments = typing.get_args(hint)
            named += step
            hint = _members_of(cls).get(step[1:], arguments[-1] if arguments else None)
            if hint is ...:
                hint = arguments[0]
    return named


def _class_of(hint: Any) -> Any:
    """Return the class of a hint, of an optional one that of what it may be."""
    if is_union(hint):
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    cls = typing.get_origin(hint) or hint
    return cls if isinstance(cls, type) else object


def _turn_of(hint: Any) -> Turn | None:
    """Return what turns the JSON of a hint; ``None`` where it names no named tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_union(hint):
        return _of_union(arguments)
    cls: Any = origin or hint
    if isinstance(cls, type):
        return _turn_of_class(cls, arguments)
    inner = getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)
    if origin is typing.Annotated:
        inner = arguments[0]
    return _turn_of(inner) if inner is not None else None


def _turn_of_class(cls: Any, arguments: tuple[Any, ...]) -> Turn | None:
    if is_named_tuple(cls):
        return _of_named_tuple(cls)
    members = {name: _turn_of(member) for name, member in _members_of(cls).items()}
    if members or not arguments:
        return _of_members({name: turn for name, turn in members.items() if turn is not None})
    if issubclass(cls, tuple) and arguments[1:] != (...,):
        return _of_places([_turn_of(argument) for argument in arguments])
    if issubclass(cls, Mapping):
        return _of_values(_turn_of(arguments[1]))
    return _of_items(_turn_of(arguments[0]))


def _members_of(cls: Any) -> dict[str, Any]:
    """Return the hints of a class's members, by their names in JSON."""
    if is_pydantic_model(cls):
        return {name: field.annotation for name, field in cls.model_fields.items()}
    if hasattr(cls, "__struct_fields__"):
        return {field.encode_name: field.type for field in msgspec.structs.fields(cls)}
    if dataclasses.is_dataclass(cls) or typing.is_typeddict(cls) or hasattr(cls, "__attrs_attrs__"):
        return typing.get_type_hints(cls)
    return {}


def _of_named_tuple(cls: Any) -> Turn:
    hints = typing.get_type_hints(cls)
    turns = [_turn_of(hints.get(name, Any)) or _as_it_is for name in cls._fields]
    fields: tuple[str, ...] = cls._fields
    defaults = {name: msgspec.to_builtins(item) for name, item in cls._field_defaults.items()}

    def turn(value: Any, to_names: bool) -> Any:  # noqa: FBT001  a table of them is called
        if to_names:
            members = zip(fields, turns, value, strict=True)
            return {name: each(item, True) for name, each, item in members}
        missing = [name for name in fields if name not in value and name not in defaults]
        if missing:
            msg = f"no field {missing[0]!r} of {cls.__name__} is recorded, and it has no default"
            raise ValueError(msg)
        return [
            each(value[name], False) if name in value else defaults[name]
            for name, each in zip(fields, turns, strict=True)
        ]

    return turn


def _of_union(arguments: tuple[Any, ...]) -> Turn | None:
    turns = [_turn_of(argument) for argument in arguments if argument is not type(None)]
    found = [turn for turn in turns if turn is not None]
    if not found:
        return None
    if len(turns) > 1:
        raise TypeError(arguments)
    return lambda value, to_names: None if value is None else found[0](value, to_names)


def _of_places(turns: list[Turn | None]) -> Turn | None:
    if not any(turns):
        return None
    each = [turn or _as_it_is for turn in turns]
    return lambda value, to_names: [
        turn(item, to_names) for turn, item in zip(each, value, strict=True)
    ]


def _of_values(turn: Turn | None) -> Turn | None:
    if turn is None:
        return None
    return lambda value, to_names: {key: turn(item, to_names) for key, item in value.items()}


def _of_items(turn: Turn | None) -> Turn | None:
    if turn is None:
        return None
    return lambda value, to_names: [turn(item, to_names) for item in value]


def _of_members(turns: Mapping[str, Turn]) -> Turn | None:
    if not turns:
        return None
    return lambda value, to_names: {
        name: turns[name](item, to_names) if name in turns else item for name, item in value.items()
    }


def _as_it_is(value: Any, _: bool) -> Any:  # noqa: FBT001  as the others
    return value
