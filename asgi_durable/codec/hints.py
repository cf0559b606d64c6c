"""What type hints are made of: the classes that they name, those of their members included."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from asgi_durable.codec.types import is_named_tuple, is_pydantic_model

__all__ = ["classes_in", "is_plain", "is_union"]

_PLAIN = frozenset({str, int, bool, float, type(None), list, dict})


def classes_in(hint: object) -> frozenset[Any]:
    """Return the classes that a hint names, directly or in the members of what it names.

    Raises:
        Exception: An annotation cannot be resolved.
    """
    found: set[Any] = set()
    waiting = [hint]
    seen: list[object] = []
    while waiting:
        current = waiting.pop()
        if any(current is other for other in seen):
            continue
        seen.append(current)
        if isinstance(current, type) and not typing.get_args(current):
            found.add(current)
        waiting.extend(_parts(current))
    return frozenset(found)


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


def is_union(hint: object) -> bool:
    """Tell whether a hint is one of several, ``X | None`` say."""
    return typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType"


def _parts(hint: Any) -> Iterator[object]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        arguments = arguments[:1]
    yield from arguments
    origin = typing.get_origin(hint)
    if isinstance(origin, type):
        yield origin
    # Of a `NewType`, and of a `type` statement's name.
    for name in ("__supertype__", "__value__"):
        if hasattr(hint, name) and not isinstance(hint, type):
            yield getattr(hint, name)
    if isinstance(hint, typing.TypeVar):
        yield from (hint.__bound__, *hint.__constraints__)
    if isinstance(hint, type) and is_pydantic_model(hint):
        fields: dict[str, Any] = hint.model_fields  # type: ignore[attr-defined]
        yield from (field.annotation for field in fields.values())
    elif isinstance(hint, type) and _has_hinted_members(hint):
        yield from typing.get_type_hints(hint).values()


def _has_hinted_members(cls: type) -> bool:
    return (
        dataclasses.is_dataclass(cls)
        or is_named_tuple(cls)
        or typing.is_typeddict(cls)
        or hasattr(cls, "__attrs_attrs__")
        or hasattr(cls, "__struct_fields__")
    )
