"""Reads and writes values of one type hint, as JSON that names no class.

The hint of today decides: a new field with a default gets it, a removed one is ignored, and a class
may have another name or module.
"""

from __future__ import annotations

import ipaddress
import math
import pathlib
import sys
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from asgi_durable.codec.typed.certain import certainty_of
from asgi_durable.codec.typed.equality import comparison_of, first_difference, has_no_number
from asgi_durable.codec.typed.hints import (
    classes_in,
    has_ambiguous_union,
    is_open,
    is_plain,
)
from asgi_durable.codec.typed.model_fields import SetFields, restore_set_fields, set_fields_of
from asgi_durable.codec.typed.named_tuples import NamedFields
from asgi_durable.codec.types import is_named_tuple
from asgi_durable.errors import DecodeError

__all__ = ["Adapter", "MisfitError", "adapter_for", "read_plain"]

# Whatever is not annotated describes itself.
_UNTYPED = (Any, object, None, type(None))
_LEAVES = (str, int, bool, float)
_AS_TEXT = (pathlib.PurePath, ipaddress.IPv4Address, ipaddress.IPv6Address)
# The first version that reads models by the names of their fields, whatever their aliases.
_PYDANTIC_VERSION = (2, 11)
_NO_FORM = "has no form in JSON"
_NO_FORM_OF_PART = f"a part of it {_NO_FORM}, for example a time zone or NaN"
_DESCRIBED = (Counter, OrderedDict, defaultdict, deque)
# Begins what was written of models with fields that nobody has set.
_WITH_FIELDS = b'{"~":['
MAX_SHOWN_CHARACTERS = 200


class MisfitError(Exception):
    """A value would not come back through its hint as it is.

    Attributes:
        reason: The reason.
        is_wrong: True if the hint is wrong; False if JSON has no form for such a value.
    """

    def __init__(self, reason: str, *, is_wrong: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_wrong = is_wrong


class Adapter(Protocol):
    """Reads and writes values of one hint.

    Attributes:
        form: Begins its records: ``j:`` if what it writes reads the same without it, ``t:`` if
            it does not.
    """

    form: bytes

    def write(self, value: Any) -> tuple[bytes, Any]:
        """Return a value as JSON, and as it comes back.

        Raises:
            MisfitError: It would not come back equal and of the same class.
        """

    def read(self, data: bytes) -> Any:
        """Return what was written, as today's code has it.

        Raises:
            DecodeError: It does not fit the hint.
        """


def adapter_for(hint: object) -> Adapter | None:
    """Return what reads and writes values of a hint; ``None`` if there is no way by hints.

    Raises:
        NameError: An annotation in a class that the hint names cannot be resolved.
    """
    if hint in _UNTYPED or isinstance(hint, typing.TypeVar):
        return None
    if hint in _LEAVES:
        return _LeafAdapter(typing.cast("type", hint))
    try:
        classes = classes_in(hint)
        names = NamedFields(hint) if any(map(is_named_tuple, classes)) else None
        if any(map(_is_of_pydantic, classes)):
            # Invariant: no class in the place of another. msgspec refuses such unions itself.
            if has_ambiguous_union(hint):
                return None
            return _pydantic_adapter(hint, names)
        return _MsgspecAdapter(hint, names)
    except NameError:
        raise
    except Exception:
        # A union of two classes, an enum of mixed values: what describes itself can hold them.
        return None


def read_plain(data: bytes) -> Any:
    """Return what an adapter for plain values has written, without any hint.

    Raises:
        DecodeError: It is damaged.
    """
    try:
        return _decode_plain(data)
    except Exception as error:
        raise _damaged(error) from error


class _LeafAdapter:
    """Of a class whose values nobody can change: they come back as they are."""

    form = b"j:"

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(kind).decode

    def write(self, value: Any) -> tuple[bytes, Any]:
        if type(value) is not self._kind:
            msg = f"it is a {type(value).__name__}, not a {self._kind.__name__}"
            raise MisfitError(msg, is_wrong=not _is_right(value, self._kind))
        if type(value) is float and not math.isfinite(value):
            raise MisfitError(_NO_FORM_OF_PART, is_wrong=False)
        try:
            return _encode(value), value
        except UnicodeEncodeError as error:
            raise MisfitError(_NO_FORM_OF_PART, is_wrong=False) from error

    def read(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except Exception as error:
            raise _damaged(error) from error


class _MsgspecAdapter:
    def __init__(self, hint: object, names: NamedFields | None) -> None:
        self.form = b"j:" if is_plain(hint) else b"t:"
        self._is_same = comparison_of(typing.get_origin(hint) or hint)
        self._is_certain = certainty_of(hint)
        self._is_open, self._class = is_open(hint), typing.get_origin(hint) or hint
        decode = _decoder(hint)
        self._encode, self._decode = _encode, decode
        if names is not None:
            self._encode = lambda value: names.named(_encode(value))
            self._decode = lambda data: _by_place(data, decode, names)

    def write(self, value: Any) -> tuple[bytes, Any]:
        # Not by a function of its own: this is what most calls wait for.
        try:
            data = self._encode(value)
            back = self._decode(data)
        except Exception as error:
            raise _refused(value, error, self._class) from error
        try:
            if self._is_certain(value) or self._is_same(value, back):
                return data, back
            misfit = _misfit(value, back, is_open=self._is_open)
        except Exception as error:  # a member's `__eq__`, or too many levels
            raise MisfitError(_NO_FORM_OF_PART, is_wrong=False) from error
        raise misfit

    def read(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except Exception as error:
            raise _damaged(error) from error


class _PydanticAdapter:
    """Adapts a hint with pydantic models; it also records which of their fields were set."""

    form = b"t:"

    def __init__(self, hint: object, adapter: Any, names: NamedFields | None) -> None:
        self._is_same = comparison_of(typing.get_origin(hint) or hint)
        self._is_open, self._class = is_open(hint), typing.get_origin(hint) or hint
        to_json, from_json = adapter.serializer.to_json, adapter.validator.validate_json

        def dump(value: Any) -> bytes:
            dumped: bytes = to_json(value, round_trip=True, by_alias=False, warnings=False)
            return dumped if names is None else names.named(dumped)

        def load(data: bytes) -> Any:
            placed = data if names is None else names.placed(data)
            return from_json(placed, strict=True, by_alias=False, by_name=True)

        self._dump, self._load = dump, load

    def write(self, value: Any) -> tuple[bytes, Any]:
        # Not by a function of its own: this is what most calls wait for.
        try:
            data = self._dump(value)
            back = self._load(data)
        except Exception as error:
            raise _refused(value, error, self._class) from error
        try:
            if self._is_same(value, back) and not data.startswith(_WITH_FIELDS):
                return data, back
            return self._with_set_fields(value, data, back)
        except MisfitError:
            raise
        except Exception as error:  # a member's `__eq__`, or too many levels
            raise MisfitError(_NO_FORM_OF_PART, is_wrong=False) from error

    def _with_set_fields(self, value: Any, data: bytes, back: Any) -> tuple[bytes, Any]:
        fields = set_fields_of(value)
        if not fields and not self._is_same(value, back):
            raise _misfit(value, back, is_open=self._is_open)
        data = b"%b%b,%b]}" % (_WITH_FIELDS, _encode(fields), data)
        back = self.read(data)
        if not self._is_same(value, back):
            raise _misfit(value, back, is_open=self._is_open)
        return data, back

    def read(self, data: bytes) -> Any:
        try:
            if not data.startswith(_WITH_FIELDS):
                return self._load(data)
            fields, dumped = _read_fields(data[len(_WITH_FIELDS) - 1 : -1])
            return restore_set_fields(self._load(bytes(dumped)), fields)
        except Exception as error:
            raise _damaged(error) from error


def _by_place(data: bytes, decode: Callable[[bytes], Any], names: NamedFields) -> Any:
    placed = names.placed(data)
    try:
        return decode(placed)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(names.with_names(str(error))) from error


def _pydantic_adapter(hint: object, names: NamedFields | None) -> Adapter | None:
    pydantic = sys.modules["pydantic"]
    version = tuple(int(part) for part in pydantic.VERSION.split(".")[:2])
    if version < _PYDANTIC_VERSION:
        return None
    return _PydanticAdapter(hint, pydantic.TypeAdapter(hint), names)


def _is_of_pydantic(cls: type) -> bool:
    names = ("__pydantic_core_schema__", "__get_pydantic_core_schema__")
    return "pydantic" in sys.modules and any(hasattr(cls, name) for name in names)


def _refused(value: Any, error: Exception, cls: object) -> MisfitError:
    """Return what is said of a value that the hint does not read, or that cannot be written."""
    shown = _shown(error)
    if isinstance(error, UnicodeEncodeError) or _has_no_form(value):
        return MisfitError(_NO_FORM_OF_PART, is_wrong=False)
    # For a class that is not read by hints, for example `Counter`; its members are not inspected.
    is_right = type(value) is cls and type(value) in _DESCRIBED
    return MisfitError(shown, is_wrong=not is_right and _NO_FORM not in shown)


def _has_no_form(value: Any) -> bool:
    try:
        return has_no_number(value)
    except RecursionError:  # it contains itself, or is nested too deeply
        return True


def _misfit(value: Any, back: Any, *, is_open: bool) -> MisfitError:
    path, written, read = first_difference(value, back) or ((), value, back)
    if type(written) is type(read) or isinstance(written, float):
        # A time zone, what is no number: right as it is.
        return MisfitError(_NO_FORM_OF_PART, is_wrong=False)
    place = "".join(f"[{step!r}]" for step in path)
    kinds = f"a {type(written).__name__}, and would come back as a {type(read).__name__}"
    # `Any` is right for whatever it is, and `Sequence` for a tuple.
    is_right = is_open or _is_right(written, type(read))
    return MisfitError(f"{place or 'it'} is {kinds}", is_wrong=not is_right)


def _is_right(value: object, cls: type) -> bool:
    """Tell whether a hint that is a class allows a value: of a subclass, an int for a float."""
    return isinstance(value, cls) or (cls is float and isinstance(value, int))


def _damaged(error: Exception) -> DecodeError:
    return DecodeError(_shown(error))


def _shown(error: Exception) -> str:
    """Return what is wrong, in one line and without the value."""
    name = type(error).__name__
    try:
        text = _details(error) if _is_pydantic_error(error) else f"{name}: {error}"
    except Exception:  # the error is the application's, and so is its `__str__`
        text = name
    return text[:MAX_SHOWN_CHARACTERS]


def _is_pydantic_error(error: Any) -> bool:
    return type(error).__module__ == "pydantic_core._pydantic_core" and hasattr(error, "errors")


def _details(error: Any) -> str:
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or '$'}: {each['msg']}" for each in details)


def _decoder(hint: object) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(typing.cast("Any", hint), dec_hook=_from_text).decode


def _to_text(value: Any) -> str:
    if isinstance(value, _AS_TEXT):
        return str(value)
    msg = f"{type(value).__name__} {_NO_FORM}"
    raise TypeError(msg)


def _from_text(kind: Any, text: Any) -> Any:
    if kind is object:
        return text
    if isinstance(kind, type) and issubclass(kind, _AS_TEXT) and isinstance(text, str):
        return kind(text)
    msg = f"{kind!r} {_NO_FORM}"
    raise TypeError(msg)


_encode = msgspec.json.Encoder(enc_hook=_to_text).encode
_read_fields = msgspec.json.Decoder(tuple[SetFields, msgspec.Raw]).decode
_decode_plain = msgspec.json.Decoder().decode
