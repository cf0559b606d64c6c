"""The meaning of arguments, as JSON, which stays the same when code changes in allowed ways.

Two calls mean the same if their arguments have equal members, whatever the names of their classes.
A member with its default value is left out, so that an added default changes nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import ipaddress
import itertools
import json
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from asgi_durable.codec.types import is_named_tuple, is_pydantic_model

__all__ = ["Canonical", "possible_forms"]

# Of more that have their defaults, all of them or none had one before.
MAX_CHOICES = 8
# All of them, or one of them, are tried for arguments of any size; the event loop waits.
MAX_FORMS_BYTES = 8 << 20

_LEAVES = frozenset({str, int, bool, float, type(None)})
_NATIVE = frozenset(
    {
        bytes,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
    }
)
_AS_TEXT = (pathlib.PurePath, ipaddress.IPv4Address, ipaddress.IPv6Address, complex)
_EMPTY = inspect.Parameter.empty
# Made anew for each value, by nothing that anybody could notice.
_HARMLESS_FACTORIES = (list, dict, set, frozenset, tuple, str, int, bool, float)

# A field of a class, or with no class a parameter.
Place = tuple[type | None, str]

_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclasses.dataclass(frozen=True, slots=True)
class Canonical:
    """Turns arguments into their canonical form.

    Args:
        describe: Returns a value of a class that is not known here as bytes, or raises.
        calls_factories: True to leave out values that equal the result of a default factory, too.
            The factory is the application's function, and is called for that.
        kept: Fields and parameters that are not left out, as if they had no default.
        left_out: Collects the fields and parameters that were left out.
    """

    describe: Callable[[object], bytes]
    calls_factories: bool = False
    kept: frozenset[Place] = frozenset()
    left_out: set[Place] | None = None

    def arguments(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        defaults: Mapping[str, Any],
        names: tuple[str, ...],
    ) -> bytes:
        """Return the arguments of a call as bytes, equal for those that mean the same.

        Args:
            args: Those given by place.
            kwargs: Those given by name.
            defaults: Of the function's parameters.
            names: Of those that can be given by place.
        """
        if defaults:
            args, kwargs = self._without_defaults(args, kwargs, defaults, names)
        if not kwargs and _LEAVES.issuperset(map(type, args)):
            return _to_bytes(args)
        try:
            return self._form(args, kwargs)
        except Exception:  # a member's own code, or a value that contains itself
            named = {name: self._value_or_class(value) for name, value in kwargs.items()}
            return self._form(tuple(map(self._value_or_class, args)), named)

    def _form(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        given = self._value(args)
        return _to_bytes([given, self._value(dict(kwargs))] if kwargs else given)

    def _value_or_class(self, value: Any) -> Any:
        """Return a value, or the name of its class if it has no form."""
        try:
            self._form((value,), {})
        except Exception:
            return _name_of(type(value))
        return value

    def mapping(self, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> bytes:
        """Return arguments by name as bytes, equal for those that mean the same."""
        kept = {
            name: self._value(value)
            for name, value in arguments.items()
            if not self._is_left_out((None, name), value, defaults.get(name, _EMPTY))
        }
        return _to_bytes(kept)

    def _without_defaults(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        defaults: Mapping[str, Any],
        names: tuple[str, ...],
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        end = len(args)
        while 0 < end <= len(names):
            name = names[end - 1]
            if not self._is_left_out((None, name), args[end - 1], defaults.get(name, _EMPTY)):
                break
            end -= 1
        given = {
            name: value
            for name, value in kwargs.items()
            if not self._is_left_out((None, name), value, defaults.get(name, _EMPTY))
        }
        return args[:end], given

    def _is_left_out(self, place: Place, value: object, default: object) -> bool:
        if not _is_default(value, default):
            return False
        if self.left_out is not None:
            self.left_out.add(place)
        return place not in self.kept

    def _value(self, value: Any) -> Any:
        kind: Any = type(value)
        if kind in _LEAVES or kind in _NATIVE:
            return value
        if kind in (list, tuple):
            return [item if type(item) in _LEAVES else self._value(item) for item in value]
        if kind is dict:
            return self._dict(value)
        fields = _fields_of(kind)
        return self._other(value, kind) if fields is None else self._members(value, fields)

    def _other(self, value: Any, kind: type) -> Any:
        if kind in (set, frozenset):
            return sorted(_to_bytes(self._value(item)).decode("utf-8") for item in value)
        if isinstance(value, enum.Enum):
            return value.value if type(value.value) in _LEAVES else value.name
        if isinstance(value, _AS_TEXT):
            return str(value)
        try:
            return base64.b64encode(self.describe(value)).decode("ascii")
        except Exception:
            # A client, or a connection: it counts by its class.
            return _name_of(kind)

    def _dict(self, value: dict[Any, Any]) -> Any:
        members = {key: self._value(item) for key, item in value.items()}
        if all(type(key) is str for key in members):
            return members
        pairs = [[self._value(key), item] for key, item in members.items()]
        return {"": sorted(pairs, key=_to_bytes)}

    def _members(self, value: Any, fields: Mapping[str, _Default]) -> dict[str, Any]:
        # A field that was never set, or is deleted, counts as one that has its default.
        members = ((name, getattr(value, name, _EMPTY), fields[name]) for name in fields)
        return {
            name: member if type(member) in _LEAVES else self._value(member)
            for name, member, default in members
            if member is not _EMPTY and not self._has_default((type(value), name), member, default)
        }

    def _has_default(self, place: Place, member: object, default: _Default) -> bool:
        if default.factory is None:
            return self._is_left_out(place, member, default.value)
        if default.factory in _HARMLESS_FACTORIES or self.calls_factories:
            return self._is_left_out(place, member, default.make())
        return False


def possible_forms(
    describe: Callable[[object], bytes], form_of: Callable[[Canonical], bytes]
) -> Iterator[bytes]:
    """Yield the forms that arguments may have had, by code that lacked some of today's defaults.

    Args:
        describe: See :class:`Canonical`.
        form_of: Makes the form of the arguments.
    """
    seen: set[Place] | None = None
    budget = MAX_FORMS_BYTES
    for calls_factories in (False, True):
        left_out: set[Place] = set()
        yield form_of(Canonical(describe, calls_factories, left_out=left_out))
        if left_out == seen:
            return
        seen = left_out
        for count, kept in _choices(sorted(left_out, key=repr)):
            if count > 1 and budget <= 0:
                break
            form = form_of(Canonical(describe, calls_factories, kept))
            budget -= len(form)
            yield form


def _choices(places: list[Place]) -> Iterator[tuple[int, frozenset[Place]]]:
    """Yield what may have had no default, the likeliest first, and a rank: 1 is always tried."""
    if not places:
        return
    yield 1, frozenset(places)
    if len(places) > MAX_CHOICES:
        return
    for count in range(1, len(places)):
        for kept in itertools.combinations(places, count):
            yield count, frozenset(kept)


@dataclasses.dataclass(frozen=True, slots=True)
class _Default:
    """Of a field; without value and factory it has none."""

    value: object = _EMPTY
    factory: Callable[[], object] | None = None

    def make(self) -> object:
        try:
            return self.factory() if self.factory is not None else _EMPTY
        except Exception:  # it is the application's, and may want arguments
            return _EMPTY


def _is_default(value: object, default: object) -> bool:
    if value is default:
        return True
    try:
        return type(value) is type(default) and bool(value == default)
    except Exception:  # `__eq__` is the application's
        return False


@functools.lru_cache(maxsize=1024)
def _fields_of(kind: type[Any]) -> Mapping[str, _Default] | None:
    """Return the fields of a class of data, ``None`` if it is none."""
    if dataclasses.is_dataclass(kind):
        return {each.name: _of_dataclass(each) for each in dataclasses.fields(kind)}
    if is_pydantic_model(kind):
        return {name: _of_model(each) for name, each in kind.model_fields.items()}
    if is_named_tuple(kind):
        return {name: _Default(kind._field_defaults.get(name, _EMPTY)) for name in kind._fields}
    if hasattr(kind, "__struct_fields__"):
        return {each.name: _of_struct(each) for each in msgspec.structs.fields(kind)}
    if hasattr(kind, "__attrs_attrs__"):
        return {each.name: _of_attrs(each) for each in kind.__attrs_attrs__}
    return None


def _of_dataclass(field: dataclasses.Field[Any]) -> _Default:
    if field.default_factory is not dataclasses.MISSING:
        return _Default(factory=field.default_factory)
    return _Default(_EMPTY if field.default is dataclasses.MISSING else field.default)


def _of_model(field: Any) -> _Default:
    if field.default_factory is not None:
        return _Default(factory=field.default_factory)
    return _Default(_EMPTY if field.is_required() else field.default)


def _of_struct(field: msgspec.structs.FieldInfo) -> _Default:
    if field.default_factory is not msgspec.NODEFAULT:
        return _Default(factory=field.default_factory)
    return _Default(_EMPTY if field.default is msgspec.NODEFAULT else field.default)


def _of_attrs(field: Any) -> _Default:
    factory = getattr(field.default, "factory", None)
    if factory is not None:
        return _Default(factory=factory)
    # This value stands for no default.
    return _Default(_EMPTY if repr(field.default) == "NOTHING" else field.default)


def _name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _to_bytes(value: object) -> bytes:
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(value, sort_keys=True, default=str).encode("ascii")
