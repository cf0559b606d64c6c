"""Finds the classes that type hints name, with those of their members."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from asgi_durable.codec.types import is_named_tuple, is_pydantic_model

__all__ = ["classes_in", "has_ambiguous_union", "is_open", "is_plain", "is_union"]

_OPEN = (Any, object, list, dict, tuple, set, frozenset)
_PLAIN = frozenset({str, int, bool, float, type(None), list, dict})


def classes_in(hint: object) -> frozenset[Any]:
    """Return the classes that a hint names, directly or in the members of what it names.

    Raises:
        Exception: An annotation cannot be resolved.
    """
    return frozenset(
        each for each in _walk(hint) if isinstance(each, type) and not typing.get_args(each)
    )


def _walk(hint: object) -> Iterator[Any]:
    """Yield a hint, and all that it and the members of its classes are made of."""
    waiting = [hint]
    seen: list[object] = []
    while waiting:
        current = waiting.pop()
        if not any(current is other for other in seen):
            seen.append(current)
            yield current
            waiting.extend(_parts(current))


def is_plain(hint: object) -> bool:
    """Tell whether all that a hint allows is JSON's own: it reads the same without the hint."""
    arguments = typing.get_args(hint)
    if not arguments:
        return hint is None or hint in (Any, object) or hint in _PLAIN
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return all(type(argument) in _PLAIN for argument in arguments)
    if origin in (list, dict) or is_union(hint):
        return all(map(is_plain, arguments))
    return origin is typing.Annotated and is_plain(arguments[0])


def has_ambiguous_union(hint: object) -> bool:
    """Tell whether JSON leaves open which class of a hint's, or of its members', a value has."""
    return any(is_union(each) and _is_ambiguous(each) for each in _walk(hint))


def _is_ambiguous(union: object) -> bool:
    members = [_class_behind(argument) for argument in typing.get_args(union)]
    return sum(map(_is_object_in_json, members)) > 1


def _class_behind(hint: Any) -> Any:
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_origin(hint) or hint


def _is_object_in_json(cls: Any) -> bool:
    return isinstance(cls, type) and (
        is_pydantic_model(cls) or issubclass(cls, Mapping) or _has_hinted_members(cls)
    )


def is_open(hint: object) -> bool:
    """Tell whether a part of a hint leaves open what is there: ``Any``, ``dict``, ``Sequence``."""
    return any(
        each in _OPEN or (isinstance(each, type) and inspect.isabstract(each))
        for each in _walk(hint)
    )


def is_union(hint: object) -> bool:
    """Tell whether a hint is a union, for example ``X | None``."""
    return typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType"


def _parts(hint: Any) -> Iterator[object]:
    yield from _arguments_of(hint)
    origin = typing.get_origin(hint)
    if isinstance(origin, type) and origin.__module__ != "builtins":
        yield origin
    if isinstance(hint, type):
        yield from _members_of(hint)
        return
    # Of a `NewType`, and of a `type` statement's name.
    for name in ("__supertype__", "__value__"):
        if hasattr(hint, name):
            yield getattr(hint, name)
    if isinstance(hint, typing.TypeVar):
        yield from (hint.__bound__, *hint.__constraints__)


def _arguments_of(hint: Any) -> tuple[Any, ...]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not typing.Annotated:
        return arguments
    if any(getattr(each, "discriminator", None) is not None for each in arguments[1:]):
        # A field of the value says which of several classes it has.
        return typing.get_args(arguments[0])
    return arguments[:1]


def _members_of(cls: type) -> Iterator[object]:
    if is_pydantic_model(cls):
        fields: dict[str, Any] = cls.model_fields  # type: ignore[attr-defined]
        for field in fields.values():
            has_choice = field.discriminator is not None
            yield from typing.get_args(field.annotation) if has_choice else (field.annotation,)
    elif _has_hinted_members(cls):
        yield from typing.get_type_hints(cls).values()


def _has_hinted_members(cls: type) -> bool:
    return (
        dataclasses.is_dataclass(cls)
        or is_named_tuple(cls)
        or typing.is_typeddict(cls)
        or hasattr(cls, "__attrs_attrs__")
        or hasattr(cls, "__struct_fields__")
    )
