"""How values are written into the step log: JSON that keeps their types.

JSON's own values stand for themselves; any other value is an object with the reserved
member ``$`` that names its kind. Classes are named ``module:QualName`` and found again
among those that were registered, never by an import: a row cannot choose code.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import math
import pathlib
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, Protocol

from asgi_durable.codec.exceptions import ExceptionCodec
from asgi_durable.codec.types import (
    TypeRegistry,
    is_named_tuple,
    is_pydantic_model,
    is_pydantic_url,
)
from asgi_durable.codec.unrecordable import unknown_type_message
from asgi_durable.errors import DecodeError, EncodeError

__all__ = ["Codec", "JsonCodec"]

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
MAX_PATH_LEVELS = 20
_INT64 = 1 << 63
_CONTAINERS = frozenset({list, dict})
_PLAIN = frozenset({str, bool, type(None)})


def _json_writer() -> Callable[[object], str]:
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


_dumps = _json_writer()
_read_json = json.JSONDecoder().raw_decode


class Codec(Protocol):
    """Turns values into bytes for the step log, and back into equal values."""

    def encode(self, value: object) -> bytes:
        """Return *value* as bytes; the same bytes in every process.

        Raises:
            EncodeError: The value, or a member of it, cannot be recorded.
        """

    def decode(self, data: bytes) -> Any:
        """Return the value that :meth:`encode` was given.

        Raises:
            DecodeError: The bytes are damaged or name a class that is not known here.
        """

    def register(self, hint: object) -> None:
        """Make the classes that a type hint names known, members included."""


class JsonCodec:
    """The default codec: readable JSON with types, never pickle.

    Knows ``None, bool, int, float, str, list, dict, tuple, set, frozenset, bytes, complex,
    date, time, datetime, timedelta, UUID, Decimal, Path``, exceptions, and the registered
    enums, dataclasses, named tuples and pydantic models. Payloads are limited to 16 MiB.
    """

    def __init__(self) -> None:
        self.types = TypeRegistry()
        self.exceptions = ExceptionCodec(self.types)

    def register(self, hint: object) -> None:
        """See :meth:`Codec.register`."""
        self.types.register(hint)

    def register_exception(self, cls: type[Exception], **how: Any) -> None:
        """See :meth:`asgi_durable.Durable.register_exception`."""
        self.exceptions.register(cls, **how)

    def encode(self, value: object) -> bytes:
        """See :meth:`Codec.encode`."""
        # What most functions return costs nothing.
        if value is None:
            return b"null"
        if type(value) is int and -_INT64 <= value < _INT64:
            return b"%d" % value
        try:
            data = _dumps(self._pack(value)).encode("ascii")
        except _UnknownTypeError as unknown:
            path = self._path_to_unknown(value) or "the value itself"
            raise EncodeError(unknown_type_message(unknown.type, path)) from None
        except RecursionError:
            msg = "the value is nested too deeply, or contains itself"
            raise EncodeError(msg) from None
        except Exception as error:  # of a member's own code, or one that was never set
            msg = f"the value cannot be read ({type(error).__name__}: {error})"
            raise EncodeError(msg) from error
        if len(data) > MAX_PAYLOAD_BYTES:
            msg = f"the value takes {len(data)} bytes; at most {MAX_PAYLOAD_BYTES} are recorded"
            raise EncodeError(msg)
        return data

    def decode(self, data: bytes) -> Any:
        """See :meth:`Codec.decode`."""
        if data == b"null":
            return None
        try:
            text = data.decode("utf-8")
            packed, end = _read_json(text)
            if end != len(text):
                _refuse_rest(text, end)
            return self._unpack(packed) if type(packed) in _CONTAINERS else packed
        except DecodeError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            msg = f"a recorded value is damaged ({type(error).__name__}: {error})"
            raise DecodeError(msg) from error
        except RecursionError:
            msg = "a recorded value is nested too deeply"
            raise DecodeError(msg) from None

    def _pack(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        pack = _PACKERS.get(kind)
        if pack is not None:
            return pack(self, value)
        return self._pack_object(value, kind)

    def _pack_object(self, value: Any, kind: type) -> Any:
        if isinstance(value, BaseException):
            return {"$": "error", **self.exceptions.pack(value, self._pack, self._unpack)}
        name = self.types.name_of(kind)
        if name is None:
            raise _UnknownTypeError(kind)
        tag, content = _content_of(value, kind)
        return {"$": tag, "t": name, "v": self._pack(content)}

    def _path_to_unknown(self, value: object, levels: int = MAX_PATH_LEVELS) -> str:
        """Return where in *value* the first unencodable member sits, for the message."""
        for key, member in _members(value) if levels else ():
            try:
                self._pack(member)
            except _UnknownTypeError:
                return f"[{key!r}]{self._path_to_unknown(member, levels - 1)}"
            except RecursionError:
                break
        return ""

    def _unpack(self, packed: Any) -> Any:
        kind = type(packed)
        if kind is list:
            for index, item in enumerate(packed):
                if type(item) is list or type(item) is dict:
                    packed[index] = self._unpack(item)
            return packed
        if kind is dict:
            tag = packed.get("$")
            if tag is not None:
                return _UNPACKERS[tag](self, packed)
            for key, item in packed.items():
                if type(item) is list or type(item) is dict:
                    packed[key] = self._unpack(item)
        return packed

    def _unpack_object(self, packed: dict[str, Any]) -> Any:
        cls = self.types.find(packed["t"])
        if cls is None:
            msg = f"the recorded class {packed['t']!r} is not known in this process"
            raise DecodeError(msg)
        return _REBUILDERS[packed["$"]](cls, self._unpack(packed["v"]))


def _refuse_rest(text: str, end: int) -> None:
    msg = "there is more behind it"
    raise json.JSONDecodeError(msg, text, end)


def _content_of(value: Any, kind: type) -> tuple[str, object]:
    """Return the kind of a registered class's value, and what it is rebuilt from."""
    if isinstance(value, enum.Flag):
        return "flag", value.value
    if isinstance(value, enum.Enum):
        return "enum", value.name
    if is_pydantic_url(kind):
        return "url", str(value)
    if is_named_tuple(kind):
        return "namedtuple", list(value)
    if is_pydantic_model(kind):
        # pydantic's own pickling state: exact, and no validator runs on the way back.
        return "model", value.__getstate__()
    return "dataclass", {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


class _UnknownTypeError(Exception):
    def __init__(self, kind: type) -> None:
        super().__init__(kind)
        self.type = kind


def _members(value: object) -> list[tuple[object, object]]:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return list(getattr(value, "__dict__", {}).items())


def _pack_int(_: JsonCodec, value: int) -> Any:
    # Hexadecimal: Python limits the decimal digits that it reads back to 4,300.
    return value if -_INT64 <= value < _INT64 else {"$": "int", "v": hex(value)}


def _pack_float(_: JsonCodec, value: float) -> Any:
    return value if math.isfinite(value) else {"$": "float", "v": repr(value)}


def _pack_list(codec: JsonCodec, value: list[Any]) -> Any:
    return [item if type(item) in _PLAIN else codec._pack(item) for item in value]


def _pack_dict(codec: JsonCodec, value: dict[Any, Any]) -> Any:
    if all(type(key) is str for key in value) and "$" not in value:
        return {
            key: item if type(item) in _PLAIN else codec._pack(item) for key, item in value.items()
        }
    pairs = [[codec._pack(key), codec._pack(item)] for key, item in value.items()]
    return {"$": "dict", "v": pairs}


def _pack_set(codec: JsonCodec, value: set[Any] | frozenset[Any]) -> Any:
    # Sorted, as the order of a set differs from process to process.
    items = sorted((codec._pack(item) for item in value), key=_dumps)
    return {"$": "set" if type(value) is set else "frozenset", "v": items}


def _pack_datetime(_: JsonCodec, value: datetime.datetime) -> Any:
    return {"$": "datetime", "v": value.isoformat(), **_pack_zone(value)}


def _pack_time(_: JsonCodec, value: datetime.time) -> Any:
    return {"$": "time", "v": value.isoformat(), **_pack_zone(value)}


def _pack_zone(value: datetime.datetime | datetime.time) -> dict[str, Any]:
    """Return what ISO 8601 leaves out: the fold, and the zone behind the offset."""
    packed: dict[str, Any] = {"fold": 1} if value.fold else {}
    if isinstance(value.tzinfo, zoneinfo.ZoneInfo):
        if value.tzinfo.key is None:
            raise _UnknownTypeError(zoneinfo.ZoneInfo)
        packed["zone"] = value.tzinfo.key
    return packed


def _unpack_datetime(_: JsonCodec, packed: dict[str, Any]) -> datetime.datetime:
    value = datetime.datetime.fromisoformat(packed["v"])
    zone = zoneinfo.ZoneInfo(packed["zone"]) if "zone" in packed else value.tzinfo
    return value.replace(tzinfo=zone, fold=packed.get("fold", 0))


def _unpack_time(_: JsonCodec, packed: dict[str, Any]) -> datetime.time:
    value = datetime.time.fromisoformat(packed["v"])
    zone = zoneinfo.ZoneInfo(packed["zone"]) if "zone" in packed else value.tzinfo
    return value.replace(tzinfo=zone, fold=packed.get("fold", 0))


def _unpack_pairs(codec: JsonCodec, packed: dict[str, Any]) -> dict[Any, Any]:
    return {codec._unpack(key): codec._unpack(value) for key, value in packed["v"]}


def _rebuild_dataclass(cls: Any, members: dict[str, Any]) -> Any:
    value = object.__new__(cls)
    for name, member in members.items():
        # Past __init__, and past the guard of a frozen dataclass.
        object.__setattr__(value, name, member)
    return value


def _rebuild_model(cls: Any, state: dict[str, Any]) -> Any:
    value = cls.__new__(cls)
    value.__setstate__(state)
    return value


def _tagged(tag: str, pack: Callable[[Any], Any]) -> Callable[[JsonCodec, Any], Any]:
    return lambda _, value: {"$": tag, "v": pack(value)}


def _plain(unpack: Callable[[Any], Any]) -> Callable[[JsonCodec, dict[str, Any]], Any]:
    return lambda _, packed: unpack(packed["v"])


def _items(build: Callable[[Any], Any]) -> Callable[[JsonCodec, dict[str, Any]], Any]:
    return lambda codec, packed: build(codec._unpack(packed["v"]))


_PACKERS: dict[type, Callable[[JsonCodec, Any], Any]] = {
    int: _pack_int,
    float: _pack_float,
    list: _pack_list,
    dict: _pack_dict,
    tuple: lambda codec, value: {"$": "tuple", "v": _pack_list(codec, value)},
    set: _pack_set,
    frozenset: _pack_set,
    bytes: _tagged("bytes", lambda value: base64.b64encode(value).decode("ascii")),
    complex: _tagged("complex", lambda value: [repr(value.real), repr(value.imag)]),
    datetime.datetime: _pack_datetime,
    datetime.date: _tagged("date", datetime.date.isoformat),
    datetime.time: _pack_time,
    datetime.timedelta: _tagged(
        "timedelta", lambda value: [value.days, value.seconds, value.microseconds]
    ),
    uuid.UUID: _tagged("uuid", str),
    decimal.Decimal: _tagged("decimal", str),
    type(pathlib.Path()): _tagged("path", str),
    ipaddress.IPv4Address: _tagged("ip", str),
    ipaddress.IPv6Address: _tagged("ip", str),
}

_UNPACKERS: dict[str, Callable[[JsonCodec, dict[str, Any]], Any]] = {
    "int": _plain(lambda value: int(value, 16)),
    "float": _plain(float),
    "dict": _unpack_pairs,
    "tuple": _items(tuple),
    "set": _items(set),
    "frozenset": _items(frozenset),
    "bytes": _plain(lambda value: base64.b64decode(value, validate=True)),
    "complex": _plain(lambda value: complex(float(value[0]), float(value[1]))),
    "datetime": _unpack_datetime,
    "date": _plain(datetime.date.fromisoformat),
    "time": _unpack_time,
    "timedelta": _plain(lambda value: datetime.timedelta(*value)),
    "uuid": _plain(uuid.UUID),
    "decimal": _plain(decimal.Decimal),
    "path": _plain(pathlib.Path),
    "ip": _plain(ipaddress.ip_address),
    "error": lambda codec, packed: codec.exceptions.unpack(packed, codec._unpack),
    "enum": JsonCodec._unpack_object,
    "flag": JsonCodec._unpack_object,
    "url": JsonCodec._unpack_object,
    "namedtuple": JsonCodec._unpack_object,
    "model": JsonCodec._unpack_object,
    "dataclass": JsonCodec._unpack_object,
}

_REBUILDERS: dict[str, Callable[[Any, Any], Any]] = {
    "enum": lambda cls, name: cls[name],
    "flag": lambda cls, value: cls(value),
    "url": lambda cls, text: cls(text),
    "namedtuple": lambda cls, items: cls._make(items),
    "model": _rebuild_model,
    "dataclass": _rebuild_dataclass,
}
