"""JSON as the tagged form is written and read in it.

Values that JSON has itself are left to msgspec, which is the fast way. Their members are looked
at one by one, by their exact classes: msgspec would also write subclasses, tuples and NaN, but
as something that they are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["is_plain", "json_text", "read_json", "write_plain"]

# Deeper values take the other way, which says what is wrong with them.
MAX_LEVELS = 16
_LOWEST_INT, _HIGHEST_INT = -(1 << 63), (1 << 63) - 1
# Between them msgspec writes the digits that `repr` writes, without an exponent.
_LOWEST_FLOAT, _HIGHEST_FLOAT = 1e-4, 1e16
_SCALARS = frozenset({str, bool, type(None)})

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


def is_plain(value: Any, levels: int = MAX_LEVELS) -> bool:
    """Tell whether JSON itself has a value, and msgspec writes it as the tagged form does.

    Args:
        value: Any value.
        levels: How many containers may be inside each other.
    """
    kind = type(value)
    if kind is dict:
        return levels > 0 and _is_plain_dict(value, levels - 1)
    if kind is list:
        return levels > 0 and _is_plain_list(value, levels - 1)
    if kind is int:
        return bool(_LOWEST_INT <= value <= _HIGHEST_INT)
    if kind is float:
        return bool(_LOWEST_FLOAT <= abs(value) < _HIGHEST_FLOAT or value == 0)
    return kind in _SCALARS


def write_plain(value: object) -> bytes | None:
    """Return a plain value as the bytes that the tagged form has always had for it.

    ``None`` if the value is not plain, or its text is none that UTF-8 can hold.
    """
    if not is_plain(value):
        return None
    try:
        data = _write(value)
    except UnicodeEncodeError:
        return None
    # The tagged form escapes all but printable ASCII characters.
    return data if data.isascii() and 0x7F not in data else json_text(value).encode("ascii")


def _is_plain_dict(value: dict[Any, Any], levels: int) -> bool:
    if "$" in value:
        return False
    for key, item in value.items():
        kind = type(item)
        if type(key) is not str:
            return False
        # The types of most values take no call.
        if kind in _SCALARS or (kind is int and _LOWEST_INT <= item <= _HIGHEST_INT):
            continue
        if not is_plain(item, levels):
            return False
    return True


def _is_plain_list(value: list[Any], levels: int) -> bool:
    return all(type(item) is str or is_plain(item, levels) for item in value)
