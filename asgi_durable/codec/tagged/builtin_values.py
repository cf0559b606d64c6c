"""How values of Python's own classes are written into the step log, and read from it.

Only exact classes are looked up: a subclass would come back as its base.
"""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import fractions
import ipaddress
import math
import pathlib
import uuid
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any

from asgi_durable.codec.tagged.plain import json_text
from asgi_durable.codec.tagged.unrecordable import UnrecordableError
from asgi_durable.codec.tagged.zones import pack_zone, put_zone, zone_name, zone_named

__all__ = ["PACKERS", "PLAIN", "UNPACKERS", "Pack", "Unpack"]

PLAIN = frozenset({str, bool, type(None)})
_TEXT = frozenset({str})
_INT64 = 1 << 63
_FACTORIES = {cls.__name__: cls for cls in (bool, bytes, dict, float, int, list, set, str, tuple)}

# Packs a value that may have so many more levels of members.
Pack = Callable[[Any, int], Any]
Unpack = Callable[[Any], Any]
_Packer = Callable[[Pack, Any, int], Any]
_Unpacker = Callable[[Unpack, dict[str, Any]], Any]


def _pack_dict(pack: Pack, value: dict[Any, Any], levels: int) -> Any:
    """Return a dictionary as one of JSON's, as pairs if it has other keys than text."""
    if _TEXT.issuperset(map(type, value)) and "$" not in value:
        return {
            key: item if type(item) in PLAIN else pack(item, levels) for key, item in value.items()
        }
    return {"$": "dict", "v": _pack_pairs(pack, value, levels)}


def _text_of(packed: dict[str, Any]) -> str:
    """Return the text that a packed value is made of.

    Raises:
        TypeError: It is made of something else.
    """
    text: str = _checked(packed["v"], str)
    return text


def _pack_int(_pack: Pack, value: int, _levels: int) -> Any:
    # Hexadecimal: Python limits the decimal digits that it reads back to 4,300.
    return value if -_INT64 <= value < _INT64 else {"$": "int", "v": hex(value)}


def _pack_float(_pack: Pack, value: float, _levels: int) -> Any:
    return value if math.isfinite(value) else {"$": "float", "v": repr(value)}


def _pack_items(pack: Pack, items: Iterable[Any], levels: int) -> list[Any]:
    return [item if type(item) in PLAIN else pack(item, levels) for item in items]


def _pack_pairs(pack: Pack, value: dict[Any, Any], levels: int) -> list[list[Any]]:
    return [[pack(key, levels), pack(item, levels)] for key, item in value.items()]


def _pack_set(pack: Pack, value: set[Any] | frozenset[Any], levels: int) -> Any:
    # Sorted, as the order of a set differs from process to process.
    items = sorted((pack(item, levels) for item in value), key=json_text)
    return {"$": "set" if type(value) is set else "frozenset", "v": items}


def _pack_deque(pack: Pack, value: collections.deque[Any], levels: int) -> Any:
    return {"$": "deque", "v": _pack_items(pack, value, levels), "maxlen": value.maxlen}


def _pack_defaultdict(pack: Pack, value: Any, levels: int) -> Any:
    factory = value.default_factory
    name = None if factory is None else getattr(factory, "__name__", "")
    if name is not None and _FACTORIES.get(name) is not factory:
        raise UnrecordableError(type(value), ": its factory is no built-in class; return a dict")
    return {"$": "defaultdict", "v": _pack_pairs(pack, value, levels), "factory": name}


def _pack_mapping(tag: str) -> _Packer:
    def packer(pack: Pack, value: Any, levels: int) -> Any:
        if vars(value):
            raise UnrecordableError(type(value), ": its attributes would be lost; return a dict")
        return {"$": tag, "v": _pack_pairs(pack, value, levels)}

    return packer


def _pack_datetime(_pack: Pack, value: datetime.datetime, _levels: int) -> Any:
    return {"$": "datetime", "v": value.isoformat(), **pack_zone(value)}


def _pack_time(_pack: Pack, value: datetime.time, _levels: int) -> Any:
    return {"$": "time", "v": value.isoformat(), **pack_zone(value)}


def _pack_timezone(pack: Pack, value: Any, levels: int) -> Any:
    return {"$": "timezone", "v": _pack_items(pack, value.__getinitargs__(), levels)}


def _items_of(unpack: Unpack, packed: dict[str, Any]) -> list[Any]:
    unpacked: list[Any] = unpack(_checked(packed["v"], list))
    return unpacked


def _unpack_pairs(unpack: Unpack, packed: dict[str, Any]) -> dict[Any, Any]:
    pairs = (_checked(pair, list) for pair in _checked(packed["v"], list))
    return {unpack(key): unpack(value) for key, value in pairs}


def _unpack_defaultdict(unpack: Unpack, packed: dict[str, Any]) -> Any:
    name = packed["factory"]
    factory: Any = None if name is None else _FACTORIES[name]
    return collections.defaultdict(factory, _unpack_pairs(unpack, packed))


def _tagged(tag: str, pack: Callable[[Any], Any]) -> _Packer:
    return lambda _pack, value, _levels: {"$": tag, "v": pack(value)}


def _listed(tag: str, members_of: Callable[[Any], Iterable[Any]]) -> _Packer:
    return lambda pack, value, levels: {
        "$": tag,
        "v": _pack_items(pack, members_of(value), levels),
    }


def _from_text(build: Callable[[str], Any]) -> _Unpacker:
    return lambda _unpack, packed: build(_text_of(packed))


def _from_items(build: Callable[[Any], Any]) -> _Unpacker:
    return lambda unpack, packed: build(unpack(_checked(packed["v"], list)))


def _from_members(build: Callable[..., Any], *kinds: type) -> _Unpacker:
    # Of exact classes: an application's object may convert itself to a number by its own code.
    return lambda unpack, packed: build(
        *(_checked(item, *kinds) for item in _items_of(unpack, packed))
    )


def _checked(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        msg = f"a {type(value).__name__} in the place of {names}"
        raise TypeError(msg)
    return value


def _to_base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


PACKERS: dict[type, _Packer] = {
    int: _pack_int,
    float: _pack_float,
    list: _pack_items,
    dict: _pack_dict,
    tuple: _listed("tuple", tuple),
    set: _pack_set,
    frozenset: _pack_set,
    collections.deque: _pack_deque,
    collections.defaultdict: _pack_defaultdict,
    collections.OrderedDict: _pack_mapping("ordereddict"),
    collections.Counter: _pack_mapping("counter"),
    bytes: _tagged("bytes", _to_base64),
    bytearray: _tagged("bytearray", _to_base64),
    complex: _tagged("complex", lambda value: [repr(value.real), repr(value.imag)]),
    range: _listed("range", lambda value: (value.start, value.stop, value.step)),
    slice: _listed("slice", lambda value: (value.start, value.stop, value.step)),
    fractions.Fraction: _listed("fraction", fractions.Fraction.as_integer_ratio),
    datetime.datetime: _pack_datetime,
    datetime.date: _tagged("date", datetime.date.isoformat),
    datetime.time: _pack_time,
    datetime.timedelta: _tagged(
        "timedelta", lambda value: [value.days, value.seconds, value.microseconds]
    ),
    datetime.timezone: _pack_timezone,
    zoneinfo.ZoneInfo: _tagged("zone", zone_name),
    uuid.UUID: _tagged("uuid", str),
    decimal.Decimal: _tagged("decimal", str),
    pathlib.PurePosixPath: _tagged("posixpath", str),
    pathlib.PureWindowsPath: _tagged("windowspath", str),
    type(pathlib.Path()): _tagged("path", str),
    ipaddress.IPv4Address: _tagged("ip", str),
    ipaddress.IPv6Address: _tagged("ip", str),
    ipaddress.IPv4Interface: _tagged("ipinterface", str),
    ipaddress.IPv6Interface: _tagged("ipinterface", str),
    ipaddress.IPv4Network: _tagged("ipnetwork", str),
    ipaddress.IPv6Network: _tagged("ipnetwork", str),
}

UNPACKERS: dict[str, _Unpacker] = {
    "int": _from_text(lambda text: int(text, 16)),
    "float": _from_text(float),
    "dict": _unpack_pairs,
    "tuple": _from_items(tuple),
    "set": _from_items(set),
    "frozenset": _from_items(frozenset),
    "deque": lambda unpack, packed: collections.deque(_items_of(unpack, packed), packed["maxlen"]),
    "defaultdict": _unpack_defaultdict,
    "ordereddict": lambda unpack, packed: collections.OrderedDict(_unpack_pairs(unpack, packed)),
    "counter": lambda unpack, packed: collections.Counter(_unpack_pairs(unpack, packed)),
    "bytes": _from_text(_from_base64),
    "bytearray": _from_text(lambda text: bytearray(_from_base64(text))),
    "complex": _from_members(lambda real, imag: complex(float(real), float(imag)), str),
    "range": _from_members(range, int),
    "slice": lambda unpack, packed: slice(*_items_of(unpack, packed)),
    "fraction": _from_members(fractions.Fraction, int),
    "datetime": lambda _, packed: put_zone(
        datetime.datetime.fromisoformat(_text_of(packed)), packed
    ),
    "date": _from_text(datetime.date.fromisoformat),
    "time": lambda _, packed: put_zone(datetime.time.fromisoformat(_text_of(packed)), packed),
    "timedelta": _from_members(datetime.timedelta, int),
    "timezone": _from_members(datetime.timezone, datetime.timedelta, str),
    "zone": _from_text(zone_named),
    "uuid": _from_text(uuid.UUID),
    "decimal": _from_text(decimal.Decimal),
    "posixpath": _from_text(pathlib.PurePosixPath),
    "windowspath": _from_text(pathlib.PureWindowsPath),
    "path": _from_text(pathlib.Path),
    "ip": _from_text(ipaddress.ip_address),
    "ipinterface": _from_text(ipaddress.ip_interface),
    "ipnetwork": _from_text(ipaddress.ip_network),
}
