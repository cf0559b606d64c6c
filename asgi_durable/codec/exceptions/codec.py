"""Writes exceptions into the step log, and reads them again.

They are recorded as class, message, arguments, attributes, cause, notes and traceback text, and a
``DurableError`` with its HTTP response. The traceback's text comes back as a note, so any code that
prints the exception shows where it was raised. An exception that cannot be rebuilt with its class
and its message comes back as ``RemoteError``; an attribute that cannot be recorded is not set, and
a note names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_durable.codec.exceptions.reading import ExceptionReader
from asgi_durable.codec.exceptions.registry import ExceptionRegistry, Types
from asgi_durable.codec.exceptions.traceback_text import TRACEBACK_ATTRIBUTE, RecordedTraceback
from asgi_durable.codec.exceptions.writing import ROOMS, ExceptionWriter, Room, within
from asgi_durable.codec.raw_access import attributes_of

__all__ = ["ROOMS", "ExceptionCodec", "RecordedTraceback", "Room", "forget_traceback", "within"]

Pack = Callable[[Any], Any]
Unpack = Callable[[Any], Any]


class ExceptionCodec:
    """Exceptions as JSON values, and back.

    Args:
        types: The classes that are registered for values.

    Attributes:
        register: See :meth:`ExceptionRegistry.register`.
    """

    def __init__(self, types: Types) -> None:
        self._registry = ExceptionRegistry(types)
        self.register = self._registry.register

    def pack(self, error: BaseException, pack: Pack, unpack: Unpack) -> dict[str, Any]:
        """Return an exception as JSON values; see :meth:`ExceptionWriter.pack`.

        Args:
            error: The exception.
            pack: Makes the tagged form of a value; raises where there is none.
            unpack: Makes a value of its tagged form, and may change that.
        """
        reader = ExceptionReader(unpack, self._registry)
        return ExceptionWriter(pack, reader, self._registry).pack(error)

    def unpack(self, packed: dict[str, Any], unpack: Unpack) -> BaseException:
        """Return the exception that was recorded; see :meth:`ExceptionReader.unpack`."""
        return ExceptionReader(unpack, self._registry).unpack(packed)


def forget_traceback(error: BaseException) -> None:
    """Take the recorded traceback off an exception that gets a traceback of its own."""
    own = attributes_of(error)
    own.pop(TRACEBACK_ATTRIBUTE, None)
    notes = [note for note in own.pop("__notes__", ()) if not isinstance(note, RecordedTraceback)]
    if notes:
        own["__notes__"] = notes
