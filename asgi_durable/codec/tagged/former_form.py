"""The tagged form as the first version wrote it: digests in its logs are made of it.

It took some values that are refused now, and refused some that are recorded now. Nothing is read
in this form, and nothing is recorded.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import fractions
import ipaddress
import pathlib
import zoneinfo
from collections.abc import Callable
from typing import Any

from asgi_durable.codec.tagged.builtin_values import PACKERS, PLAIN
from asgi_durable.codec.tagged.plain import json_text
from asgi_durable.codec.types import is_mapped, is_named_tuple, is_pydantic_model, kind_of
from asgi_durable.errors import EncodeError

__all__ = ["former_bytes"]

_NEWER = frozenset(
    {
        *(bytearray, range, slice, fractions.Fraction, collections.deque, collections.Counter),
        *(collections.OrderedDict, collections.defaultdict, datetime.timezone, zoneinfo.ZoneInfo),
        *(pathlib.PurePosixPath, pathlib.PureWindowsPath),
        *(ipaddress.IPv4Interface, ipaddress.IPv6Interface),
        *(ipaddress.IPv4Network, ipaddress.IPv6Network),
    }
)
IsKnown = Callable[[type], bool]


def former_bytes(value: object, is_known: IsKnown) -> bytes:
    """Return the bytes that the first version wrote for a value.

    Args:
        value: Any value.
        is_known: Tells whether a class is registered.

    Raises:
        EncodeError: It had none for it.
    """
    try:
        return json_text(_pack(value, is_known)).encode("ascii")
    except Exception as error:
        msg = f"the value was not recorded before ({type(error).__name__}: {error})"
        raise EncodeError(msg) from error


def _pack(value: Any, is_known: IsKnown) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind in (datetime.datetime, datetime.time):
        return _pack_time(value)
    pack = None if kind in _NEWER else PACKERS.get(kind)
    if pack is not None:
        return pack(lambda member, _: _pack(member, is_known), value, 0)
    if not is_known(kind) and not (is_mapped(kind) and dataclasses.is_dataclass(kind)):
        raise TypeError(kind)
    tag, content = _content_of(value, kind)
    name = f"{kind.__module__}:{kind.__qualname__}"
    return {"$": tag, "t": name, "v": _pack(content, is_known)}


def _pack_time(value: datetime.datetime | datetime.time) -> dict[str, Any]:
    tag = "datetime" if type(value) is datetime.datetime else "time"
    packed = {"$": tag, "v": value.isoformat(), **({"fold": 1} if value.fold else {})}
    if isinstance(value.tzinfo, zoneinfo.ZoneInfo):
        if value.tzinfo.key is None:
            raise TypeError(value.tzinfo)
        packed["zone"] = value.tzinfo.key
    return packed


def _content_of(value: Any, kind: type) -> tuple[str, object]:
    if isinstance(value, enum.Flag):
        return "flag", value.value
    if isinstance(value, enum.Enum):
        return "enum", value.name
    if kind_of(kind) == "url":
        return "url", str(value)
    if is_named_tuple(kind):
        return "namedtuple", list(value)
    if is_pydantic_model(kind):
        return "model", value.__getstate__()
    return "dataclass", {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
