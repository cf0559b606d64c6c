"""How values are written into the step log: JSON that keeps their types.

JSON's own values stand for themselves; any other value is an object with the reserved
member ``$`` that names its kind. Classes are named ``module:QualName``, or as they were
registered, and found again among those that were registered, never by an import: a row
cannot choose code.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from asgi_durable.codec.exceptions.codec import ExceptionCodec
from asgi_durable.codec.tagged.builtin_values import PACKERS, PLAIN, UNPACKERS, Unpack
from asgi_durable.codec.tagged.class_values import CLASS_TAGS, content_of, rebuild
from asgi_durable.codec.tagged.former_form import former_bytes
from asgi_durable.codec.tagged.plain import json_text, read_json, write_plain
from asgi_durable.codec.tagged.type_registry import TypeRegistry
from asgi_durable.codec.tagged.unrecordable import UnrecordableError, unrecordable_message
from asgi_durable.errors import DecodeError, EncodeError

__all__ = ["Codec", "JsonCodec"]

MAX_PATH_LEVELS = 20
# Reading takes at most three frames a level: what was written can be read deeper in the stack.
MAX_LEVELS = 200
_INT64 = 1 << 63
_CONTAINERS = frozenset({list, dict})
_SPLIT_CHARACTER = re.compile("[\ud800-\udbff][\udc00-\udfff]")


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

    Knows ``None, bool, int, float, str, list, dict, tuple, set, frozenset, bytes, bytearray,
    complex, Fraction, Decimal, range, slice, date, time, datetime, timedelta, timezone,
    ZoneInfo, UUID``, paths, IP addresses and networks, the dictionaries and the deque of
    ``collections``, exceptions, and the registered enums, dataclasses, named tuples and
    pydantic models.

    A fixed offset of another class than ``datetime.timezone`` comes back as one.
    """

    def __init__(self) -> None:
        self.types = TypeRegistry()
        self._unpackers = _Unpackers(UNPACKERS)
        self._unpackers |= dict.fromkeys(CLASS_TAGS, self._unpack_object)
        self.exceptions = ExceptionCodec(self.types)
        self._unpackers["error"] = lambda unpack, packed: self.exceptions.unpack(packed, unpack)

    def register(
        self, hint: object, *, name: str | None = None, aliases: Iterable[str] = ()
    ) -> None:
        """See :meth:`Codec.register`.

        Args:
            hint: A class, or a type hint that names classes.
            name: The name that a class is recorded under; its module and name by default.
            aliases: Names that it was recorded under before.

        Raises:
            DurableUsageError: There is a name or an alias, and the hint is no recordable class,
                or a name belongs to another class.
        """
        if name is None and not aliases:
            self.types.register(hint)
        else:
            self.types.register_as(hint, name, aliases)

    def register_exception(self, cls: type[Exception], **how: Any) -> None:
        """See :meth:`asgi_durable.Durable.register_exception`."""
        self.exceptions.register(cls, **how)

    def encode(self, value: object) -> bytes:
        """See :meth:`Codec.encode`."""
        # The hints of most functions cost nothing.
        if value is None:
            return b"null"
        if type(value) is int and -_INT64 <= value < _INT64:
            return b"%d" % value
        data = write_plain(value)
        return self._encode_tagged(value) if data is None else data

    def former_bytes(self, value: object) -> bytes:
        """Return the bytes that the first version wrote for a value, for digests in its logs.

        Raises:
            EncodeError: It had none for it.
        """
        return former_bytes(value, lambda cls: self.types.name_of(cls) is not None)

    def decode(self, data: bytes) -> Any:
        """See :meth:`Codec.decode`."""
        if data == b"null":
            return None
        try:
            packed = read_json(data)
            # Without a tag, or an escape that may hide one, it is what it is.
            if type(packed) in _CONTAINERS and (0x24 in data or 0x5C in data):
                return self._unpack(packed)
        except (DecodeError, MemoryError):
            raise
        except RecursionError:
            msg = "a recorded value is nested too deeply"
            raise DecodeError(msg) from None
        except Exception as error:
            msg = f"a recorded value is damaged ({type(error).__name__}: {error})"
            raise DecodeError(msg) from error
        else:
            return packed

    def _encode_tagged(self, value: object) -> bytes:
        try:
            packed = self._pack(value, MAX_LEVELS)
            text = json_text(packed)
            if "\\ud" in text and _has_split_character(packed):
                msg = "text in the value has halves of a surrogate pair beside each other"
                raise EncodeError(msg)
            return text.encode("ascii")
        except (EncodeError, MemoryError):
            raise
        except UnrecordableError as error:
            path = self._path_to(error, value) or "the value itself"
            raise EncodeError(unrecordable_message(error, path)) from None
        except (_TooDeepError, RecursionError):
            msg = f"the value is nested too deeply (over {MAX_LEVELS} levels), or contains itself"
            raise EncodeError(msg) from None
        except Exception as error:  # of a member's own code
            msg = f"the value cannot be read ({type(error).__name__}: {error})"
            raise EncodeError(msg) from error

    def _pack(self, value: Any, levels: int) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        if levels < 0:
            raise _TooDeepError
        pack = PACKERS.get(kind)
        if pack is not None:
            return pack(self._pack, value, levels - 1)
        return self._pack_object(value, kind, levels - 1)

    def _pack_object(self, value: Any, kind: type, levels: int) -> Any:
        if isinstance(value, BaseException):
            # As much of an exception is packed as is possible: it may hold locks and sockets.
            def pack(member: Any) -> Any:
                return self._pack(member, levels)

            return {"$": "error", **self.exceptions.pack(value, pack, self._unpack)}
        name = self.types.recorded_name(kind)
        tag, content = content_of(value, kind)
        if type(content) is dict:
            # The members are one level below, not below a level of their own.
            packed: Any = {
                key: item if type(item) in PLAIN else self._pack(item, levels)
                for key, item in content.items()
            }
        else:
            packed = self._pack(content, levels + 1)
        if tag == "namedtuple":
            # The members' places may change. Versions before do not look at the names.
            names = list(getattr(kind, "_fields", ()))
            return {"$": tag, "t": name, "v": packed, "f": names}
        return {"$": tag, "t": name, "v": packed}

    def _path_to(
        self, error: UnrecordableError, value: object, levels: int = MAX_PATH_LEVELS
    ) -> str:
        """Return where in *value* the member is that an error is about, for its message."""
        for key, member in self._members(value) if levels else ():
            try:
                self._pack(member, MAX_LEVELS)
            except UnrecordableError as found:
                if found.args == error.args:
                    return f"[{key!r}]{self._path_to(error, member, levels - 1)}"
            except Exception:
                break
        return ""

    def _members(self, value: object) -> list[tuple[object, object]]:
        if isinstance(value, dict):
            return list(value.items())
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return list(enumerate(value))
        if self.types.name_of(type(value)) is None:
            return []
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
        return list(getattr(value, "__dict__", {}).items())

    def _unpack(self, packed: Any) -> Any:
        kind = type(packed)
        if kind is list:
            for index, item in enumerate(packed):
                if type(item) is list or type(item) is dict:
                    packed[index] = self._unpack(item)
            return packed
        if kind is dict:
            if "$" in packed:
                return self._unpackers[packed["$"]](self._unpack, packed)
            for key, item in packed.items():
                if type(item) is list or type(item) is dict:
                    packed[key] = self._unpack(item)
        return packed

    def _unpack_object(self, unpack: Unpack, packed: dict[str, Any]) -> Any:
        name = packed["t"]
        cls = self.types.find(name)
        if cls is None:
            msg = f"the recorded class {name!r} is not known in this process"
            raise DecodeError(msg)
        return rebuild(packed["$"], cls, unpack(packed["v"]), packed.get("f"))


class _Unpackers(dict[str, Callable[[Unpack, dict[str, Any]], Any]]):
    """Return the functions that unpack tagged values, by tag."""

    def __missing__(self, tag: object) -> Any:
        msg = f"a recorded value is of an unknown kind, {tag!r}"
        raise DecodeError(msg)


class _TooDeepError(Exception):
    """A value has more levels than are recorded."""


def _has_split_character(packed: Any) -> bool:
    """Tell whether text holds a character in two halves: it would be read as the character."""
    kind = type(packed)
    if kind is str:
        return _SPLIT_CHARACTER.search(packed) is not None
    if kind is list:
        return any(map(_has_split_character, packed))
    if kind is dict:
        return any(map(_has_split_character, packed)) or any(
            map(_has_split_character, packed.values())
        )
    return False
