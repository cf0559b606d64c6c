"""How exceptions are written into the step log and come back.

They are stored as class, message, arguments, attributes, cause, notes and traceback text, a
``DurableError`` with what it says to HTTP clients. The traceback's text comes back as a note, so
whatever prints the exception shows where it was raised. What cannot be rebuilt with its class and
its message comes back as ``RemoteError``; an attribute that cannot be recorded is not set, and a
note names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_durable.codec.exception_reading import ExceptionReader
from asgi_durable.codec.exception_registry import ExceptionRegistry, Types
from asgi_durable.codec.exception_writing import ROOMS, ExceptionWriter, Room, within
from asgi_durable.codec.raw_access import attributes_of
from asgi_durable.codec.traceback_text import TRACEBACK_ATTRIBUTE, RecordedTraceback

__all__ = ["ROOMS", "ExceptionCodec", "RecordedTraceback", "Room", "forget_traceback", "within"]


class ExceptionCodec:
    """Exceptions as JSON values, and back.

    Args:
        pack: Makes the tagged form of a value; raises where there is none.
        unpack: Makes a value of its tagged form, and may change that.
        types: The classes that are registered for values.

    Attributes:
        register: See :meth:`ExceptionRegistry.register`.
        pack: See :meth:`ExceptionWriter.pack`.
        unpack: See :meth:`ExceptionReader.unpack`.
    """

    def __init__(
        self, pack: Callable[[Any], Any], unpack: Callable[[Any], Any], types: Types
    ) -> None:
        registry = ExceptionRegistry(types)
        reader = ExceptionReader(unpack, registry)
        self.register = registry.register
        self.unpack = reader.unpack
        self.pack = ExceptionWriter(pack, reader, registry).pack


def forget_traceback(error: BaseException) -> None:
    """Take the recorded traceback off an exception that gets a traceback of its own."""
    own = attributes_of(error)
    own.pop(TRACEBACK_ATTRIBUTE, None)
    notes = [note for note in own.pop("__notes__", ()) if not isinstance(note, RecordedTraceback)]
    if notes:
        own["__notes__"] = notes
