"""Whether two values are the same: equal, and of the same class in every part."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import zoneinfo
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

from asgi_durable.codec.exceptions.codec import RecordedTraceback

__all__ = ["difference", "differences"]

MISSING = object()
# Attributes that the library sets on an exception that it has recorded.
OF_THE_LIBRARY = ("durable_traceback", "__notes__")


def difference(value: object, expected: object, path: str = "value") -> str:
    """Return where a value is another one than expected, and how; empty if it is the same."""
    if type(value) is not type(expected):
        return f"{path} is {value!r} ({type(value)}), not {expected!r} ({type(expected)})"
    value_parts, expected_parts = _parts(value), _parts(expected)
    if value_parts is None or expected_parts is None:
        return "" if _is_equal(value, expected) else f"{path} is {value!r}, not {expected!r}"
    pairs = zip_longest(value_parts, expected_parts, fillvalue=("missing", MISSING))
    for (name, part), (expected_name, expected_part) in pairs:
        if name != expected_name:
            return f"{path} has {name!r}, not {expected_name!r}"
        if found := difference(part, expected_part, f"{path}[{name!r}]"):
            return found
    return ""


def differences(pairs: dict[Any, tuple[object, object]]) -> dict[Any, str]:
    """Return the differences between the two of each pair, if they have any."""
    found = {name: difference(value, expected) for name, (value, expected) in pairs.items()}
    return {name: text for name, text in found.items() if text}


def _parts(value: Any) -> Iterable[tuple[object, object]] | None:
    """Return what a value consists of; ``None`` if that is nothing but itself."""
    if hasattr(value, "__pydantic_fields_set__"):
        state = value.__getstate__()
        return sorted({**state, "__dict__": _sorted(state["__dict__"])}.items())
    for names_of in (_names_of_struct, _names_of_attrs, _names_of_dataclass):
        if not isinstance(value, type) and (names := names_of(value)) is not None:
            return [(name, getattr(value, name, MISSING)) for name in names]
    parts_of = next((parts for kind, parts in _CONTAINERS if isinstance(value, kind)), None)
    return None if parts_of is None else parts_of(value)


def _sorted(values: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


def _names_of_struct(value: Any) -> list[str] | None:
    return getattr(value, "__struct_fields__", None)


def _names_of_attrs(value: Any) -> list[str] | None:
    fields = getattr(value, "__attrs_attrs__", None)
    return None if fields is None else [field.name for field in fields]


def _names_of_dataclass(value: Any) -> list[str] | None:
    if not dataclasses.is_dataclass(value):
        return None
    return [field.name for field in dataclasses.fields(value)]


def _parts_of_dict(value: dict[Any, Any]) -> list[tuple[object, object]]:
    # The keys as well, as 1 and True are equal; in their order.
    return [part for n, item in enumerate(value.items()) for part in ((n, item[0]), item)]


def _parts_of_error(error: BaseException) -> list[tuple[object, object]]:
    attributes = {k: v for k, v in sorted(vars(error).items()) if k not in OF_THE_LIBRARY}
    notes = getattr(error, "__notes__", [])
    parts: list[tuple[object, object]] = [
        ("message", str(error)),
        ("arguments", error.args),
        ("attributes", attributes),
        ("notes", [note for note in notes if not isinstance(note, RecordedTraceback)]),
        ("cause", error.__cause__),
    ]
    if isinstance(error, OSError):
        parts.append(("os", (error.errno, error.strerror, error.filename)))
    if isinstance(error, BaseExceptionGroup):
        parts.append(("errors", list(error.exceptions)))
    return parts


_CONTAINERS: list[tuple[Any, Callable[[Any], Iterable[tuple[object, object]]]]] = [
    (dict, _parts_of_dict),
    ((list, tuple), enumerate),
    ((set, frozenset), lambda value: enumerate(sorted(value, key=repr))),
    (BaseException, _parts_of_error),
]


def _is_equal(value: Any, expected: Any) -> bool:
    if isinstance(value, float):
        return repr(value) == repr(expected)
    if isinstance(value, decimal.Decimal):
        return value.as_tuple() == expected.as_tuple()
    if isinstance(value, (datetime.datetime, datetime.time)):
        return (value.isoformat(), value.fold, _zone(value)) == (
            expected.isoformat(),
            expected.fold,
            _zone(expected),
        )
    return bool(value == expected)


def _zone(value: datetime.datetime | datetime.time) -> object:
    zone = value.tzinfo
    return (type(zone), zone.key) if isinstance(zone, zoneinfo.ZoneInfo) else zone
