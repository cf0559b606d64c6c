"""JSON as the tagged form is written and read in it.

Values that JSON has itself are left to msgspec, which is the fast way. Their members are looked
at one by one, by their exact classes: msgspec would also write subclasses, tuples and NaN, but
as something that they are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import msgspec

__all__ = ["NOT_PLAIN", "copy_plain", "json_text", "read_json", "write_plain"]

# Deeper values take the other way, which says what is wrong with them.
MAX_LEVELS = 16
_INT64 = 1 << 63
# Between them msgspec writes the digits that `repr` writes, without an exponent.
_LOWEST_FLOAT, _HIGHEST_FLOAT = 1e-4, 1e16
_SCALARS = frozenset({str, bool, type(None)})
NOT_PLAIN: Final = object()

_write = msgspec.json.Encoder().encode
_read_fast = msgspec.json.Decoder().decode


def _text_writer() -> Callable[[object], str]:
    """Return what turns JSON's own values into text."""
    encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)
    # `encode` makes an encoder in C anew for every value, and that takes as long as to use it.
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    quote: Any = getattr(json.encoder, "encode_basestring_ascii", None)
    try:
        write = make(None, encoder.default, quote, None, ":", ",", False, False, False)
    except TypeError:
        return encoder.encode
    return lambda value: "".join(write(value, 0))


def _refuse_constant(name: str) -> None:
    msg = f"{name} is no JSON"
    raise ValueError(msg)


json_text = _text_writer()
_read_slowly = json.JSONDecoder(parse_constant=_refuse_constant).decode


def read_json(data: bytes) -> Any:
    """Return what JSON text stands for.

    Raises:
        Exception: It is none.
    """
    try:
        return _read_fast(data)
    except msgspec.DecodeError:
        # Halves of surrogate pairs, which Python's text can hold, are no text for msgspec.
        if b"\\u" not in data:
            raise
    return _read_slowly(data.decode("utf-8"))


def copy_plain(value: Any, levels: int = MAX_LEVELS) -> Any:
    """Return a copy of a value that JSON has itself, ``NOT_PLAIN`` for any other value.

    Args:
        value: Any value.
        levels: How many containers may be inside each other.
    """
    kind = type(value)
    if kind is dict:
        return _copy_dict(value, levels - 1) if levels else NOT_PLAIN
    if kind is list:
        return _copy_list(value, levels - 1) if levels else NOT_PLAIN
    return value if _is_scalar(value, kind) else NOT_PLAIN


def write_plain(value: object) -> bytes | None:
    """Return a plain value as the bytes that the tagged form has always had for it.

    ``None`` if these are not what msgspec writes: the tagged form escapes all but printable
    ASCII characters.
    """
    if copy_plain(value) is NOT_PLAIN:
        return None
    try:
        data = _write(value)
    except UnicodeEncodeError:
        return None
    return data if data.isascii() and 0x7F not in data else None


def _copy_dict(value: dict[Any, Any], levels: int) -> Any:
    if "$" in value:
        return NOT_PLAIN
    copy = value.copy()
    for key, item in value.items():
        kind = type(item)
        if type(key) is not str:
            return NOT_PLAIN
        if kind in _SCALARS or (kind is int and -_INT64 <= item < _INT64):
            continue
        member = copy_plain(item, levels)
        if member is NOT_PLAIN:
            return NOT_PLAIN
        copy[key] = member
    return copy


def _copy_list(value: list[Any], levels: int) -> Any:
    copy = value.copy()
    for index, item in enumerate(value):
        kind = type(item)
        if kind in _SCALARS or (kind is int and -_INT64 <= item < _INT64):
            continue
        member = copy_plain(item, levels)
        if member is NOT_PLAIN:
            return NOT_PLAIN
        copy[index] = member
    return copy


def _is_scalar(value: Any, kind: type) -> bool:
    if kind in _SCALARS:
        return True
    if kind is int:
        return bool(-_INT64 <= value < _INT64)
    return kind is float and bool(value == 0 or _LOWEST_FLOAT <= abs(value) < _HIGHEST_FLOAT)
