"""Writes exceptions into the step log.

Each exception is rebuilt once before it is written: one that would not come back with its class
and its message is recorded so that it comes back as ``RemoteError``, with the reason as a note.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeGuard

from asgi_durable.codec.exceptions.http_values import cut_body_note, http_kind, pack_http
from asgi_durable.codec.exceptions.known import names_credentials, prepared_attributes
from asgi_durable.codec.exceptions.parts import (
    clean,
    described,
    dotted,
    fields_outside,
    made_of,
    own_notes,
    same,
)
from asgi_durable.codec.exceptions.reading import ExceptionReader, Packed
from asgi_durable.codec.exceptions.registry import ExceptionRegistry, ToData
from asgi_durable.codec.exceptions.stored_responses import pack_answer
from asgi_durable.codec.exceptions.traceback_text import (
    TRACEBACK_ATTRIBUTE,
    message_of,
    traceback_text,
    without_credentials,
)
from asgi_durable.codec.exceptions.unrecorded import (
    UNRECORDED_ATTRIBUTE,
    explain_missing,
)
from asgi_durable.codec.raw_access import attributes_of, build, class_name
from asgi_durable.errors import DurableError, RemoteError

__all__ = ["ROOMS", "ExceptionWriter", "Room", "within"]

MAX_LEVELS = 4
MAX_REPEATED_CHARACTERS = 10_000
MAX_SHORT_NOTES = 10
# Of what is put behind a text that is cut.
MAX_SUFFIX_CHARACTERS = 30
_TOO_LARGE = "This error was too large to be recorded whole, and parts of it are left out"
_PLAIN = (str, bool, type(None))
_NOT_ATTRIBUTES = ("__notes__", TRACEBACK_ATTRIBUTE, UNRECORDED_ATTRIBUTE)


@dataclass(frozen=True)
class Room:
    """How much of an exception is recorded.

    Attributes:
        traceback: Characters of its traceback's text, and of those that it refers to.
        value: Characters of each argument, attribute and note; ``None`` for all of it.
        message: Characters of its message; ``None`` for all of it.
    """

    traceback: tuple[int, int]
    value: int | None = None
    message: int | None = None


# They are tried in this order, until the record fits into the payload.
ROOMS = (
    Room((16_384, 2_048)),
    Room((16_384, 2_048), value=65_536),
    Room((2_048, 0), value=1_024),
    Room((0, 0), value=256, message=10_000),
    Room((0, 0), value=64, message=1_000),
    Room((0, 0), value=64, message=100),
)

_level: ContextVar[int] = ContextVar("asgi_durable_exception_level", default=0)
_room: ContextVar[Room] = ContextVar("asgi_durable_exception_room", default=ROOMS[0])


@contextmanager
def within(room: Room) -> Iterator[None]:
    """Record exceptions in this room."""
    token = _room.set(room)
    try:
        yield
    finally:
        _room.reset(token)


class _NoFormError(Exception):
    """The exception would not come back as it is; the message says why."""


class _TooLargeError(Exception):
    pass


class ExceptionWriter:
    """Makes records of exceptions.

    Args:
        pack: Makes the tagged form of a value; raises where there is none.
        reader: Makes exceptions of the records.
        registry: The classes.
    """

    def __init__(
        self, pack: Callable[[Any], Any], reader: ExceptionReader, registry: ExceptionRegistry
    ) -> None:
        self._pack_value = pack
        self._reader = reader
        self._registry = registry

    def pack(self, error: BaseException) -> Packed:
        """Return an exception as JSON values.

        Exceptions in its arguments and attributes, and its causes, are packed as well, down to
        a few levels: they may refer to each other. Below that only type and message are recorded.
        """
        level = _level.get()
        token = _level.set(level + 1)
        try:
            return self._pack(error, level, _room.get())
        finally:
            _level.reset(token)

    def _pack(self, error: BaseException, level: int, room: Room) -> Packed:
        explain_missing(error)
        message = message_of(error)
        if names_credentials(error):
            message = without_credentials(message)
        notes = own_notes(error)
        packed: Packed = {
            "t": self._registry.name_of(type(error)),
            "m": _cut(message, room.message),
            **self._form(error, message, notes, level),
            "tb": _end(traceback_text(error), room.traceback[level > 0]),
        }
        if isinstance(error, RemoteError):
            packed["t"], packed["m"] = error.type_name, _cut(error.message, room.message)
        if _has_answer(error):
            packed["d"] = _cut_answer(pack_answer(error), room)
        if room.value is not None:
            notes = [_cut(note, room.value) for note in notes[:MAX_SHORT_NOTES]]
        if room is not ROOMS[0] and level == 0 and _TOO_LARGE not in notes:
            notes.append(_TOO_LARGE)
        if notes:
            packed["n"] = notes
        cause = error.__cause__
        if cause is not None and level < MAX_LEVELS:
            packed["c"] = self._pack_value(cause)
        return packed

    def _form(self, error: BaseException, message: str, notes: list[str], level: int) -> Packed:
        """Return what an exception is rebuilt from, after that was seen to work.

        Reasons why it does not, or not wholly, are added to *notes*.
        """
        without_class: Packed = {"a": [], "s": {}, "r": False}
        if isinstance(error, RemoteError) or level >= MAX_LEVELS:
            return without_class
        try:
            return self._class_form(error, message, notes)
        except _NoFormError as reason:
            notes.append(f"Recorded without its class: {reason}")
            return without_class

    def _class_form(self, error: BaseException, message: str, notes: list[str]) -> Packed:
        cls = self._registry.recorded_class(type(error))
        if cls is None:
            msg = (
                f"{class_name(type(error))} is no class of a loaded module, or is another class "
                "there; durable.register_exception(cls) makes it known"
            )
            raise _NoFormError(msg)
        functions = self._registry.functions_of(cls)
        if functions is not None:
            form = self._data_form(error, cls, functions[0], functions[1])
        else:
            form = self._own_form(error, cls, message, notes)
        if not self._leads_to(cls, form, message):
            form = self._short_form(cls, message, form)
        if cls is not type(error):
            form["t"] = self._registry.name_of(cls)
            notes.append(f"Recorded as its base class; it was {class_name(type(error))}")
        if not form["u"]:
            del form["u"]
        return {**form, "r": True}

    def _leads_to(self, cls: type, form: Packed, message: str) -> bool:
        try:
            rebuilt = self._reader.rebuild(cls, _copied({"a": [message], **form}))
        except Exception:
            return False
        if rebuilt is None or type(rebuilt) is not cls:
            return False
        text = message_of(rebuilt)
        if names_credentials(rebuilt):
            text = without_credentials(text)
        # Where __str__ fails there is no message that could be compared.
        return text in {message, _cut(message, _room.get().message)} and _has_text(rebuilt)

    def _short_form(self, cls: type, message: str, whole: Packed) -> Packed:
        """Return the form with a message alone for arguments, where they are too large."""
        limit = _room.get().message
        form: Packed = {"a": [_cut(message, limit)], "s": whole["s"], "u": whole["u"]}
        if limit is not None and self._leads_to(cls, form, message):
            return form
        msg = (
            f"an object of {class_name(cls)} with the same arguments and attributes would have "
            "another message; durable.register_exception() says how to record it"
        )
        raise _NoFormError(msg)

    def _data_form(self, error: BaseException, cls: type, name: str, to_data: ToData) -> Packed:
        try:
            data = self._pack_value(to_data(error))
            form: Packed = {"a": [], "s": {}, "e": [name, data]}
            rebuilt = self._reader.rebuild(cls, _copied(form))
        except Exception as failure:
            msg = f"what is registered for {name} has failed ({type(failure).__name__}: {failure})"
            raise _NoFormError(msg) from failure
        there = attributes_of(rebuilt) if rebuilt is not None else {}
        rest = {key: item for key, item in attributes_of(error).items() if key not in there}
        form["s"], form["u"] = self._attributes(error, rest, [])
        return form

    def _own_form(self, error: BaseException, cls: type, message: str, notes: list[str]) -> Packed:
        arguments, is_whole = made_of(error), True
        packed = self._arguments(arguments, message, notes)
        try:
            build(cls, [self._reader.value(item) for item in _copied(packed)])
            plain = build(cls, arguments)
        except Exception:
            # The built-in class refuses args that were set after the exception was made.
            arguments, packed, is_whole = [], [], False
            plain = _build_bare(cls)
        form: Packed = {"a": packed}
        if not is_whole or not same(plain.args, clean(error, error.args)):
            form["g"] = self._arguments(clean(error, error.args), message, notes)
        if packed == [message] and len(message) > MAX_REPEATED_CHARACTERS:
            del form["a"]
        attributes = {**prepared_attributes(error), **fields_outside(error, plain)}
        form["s"], form["u"] = self._attributes(error, attributes, notes)
        return form

    def _arguments(self, values: list[Any], message: str, notes: list[str]) -> list[Any]:
        return [self._argument(value, message, notes) for value in values]

    def _argument(self, value: Any, message: str, notes: list[str]) -> Any:
        if type(value) is str and value == message:
            return _cut(message, _room.get().message)
        try:
            return self._kept(value, notes)
        except Exception:
            return {"$": "unrecorded", "v": described(value)}

    def _attributes(
        self, error: BaseException, attributes: dict[str, Any], notes: list[str]
    ) -> tuple[Packed, dict[str, str]]:
        """Return the attributes that can be recorded, and the classes of the others by name."""
        kept: Packed = {}
        lost: dict[str, str] = dict(attributes_of(error).get(UNRECORDED_ATTRIBUTE, {}))
        for name, value in attributes.items():
            if name in _NOT_ATTRIBUTES or type(name) is not str:
                continue
            try:
                kept[name] = self._kept(value, notes)
            except _TooLargeError:
                lost[name] = f"{dotted(type(value))}, too large"
            except Exception:
                lost[name] = dotted(type(value))
        return kept, lost

    def _kept(self, value: Any, notes: list[str]) -> Any:
        """Return the packed form of a value, after it was read once; raises if there is none."""
        if type(value) in _PLAIN:
            packed = value
        elif (kind := http_kind(value)) is not None:
            data = pack_http(kind, value)
            packed = {"$": "held", "k": kind, "v": self._pack_value(data)}
            note = cut_body_note(data)
            if note is not None and note not in notes:
                notes.append(note)
        else:
            packed = self._pack_value(value)
        limit = _room.get().value
        if limit is not None and len(json.dumps(packed)) > limit:
            raise _TooLargeError
        if type(packed) is list or type(packed) is dict:
            self._reader.value(_copied(packed))
        return packed


def _has_answer(error: BaseException) -> TypeGuard[DurableError]:
    """Tell whether an error, or the one that it stands for, says how it is answered."""
    if isinstance(error, RemoteError):
        return error.shown_detail is not None
    return isinstance(error, DurableError)


def _cut_answer(answer: Packed, room: Room) -> Packed:
    if isinstance(answer.get("detail"), str):
        answer["detail"] = _cut(answer["detail"], room.message)
    return answer


def _cut(text: str, limit: int | None) -> str:
    # A text that was cut before is not cut again.
    if limit is None or len(text) <= limit + MAX_SUFFIX_CHARACTERS:
        return text
    return f"{text[:limit]}… ({len(text)} characters)"


def _end(text: str, limit: int) -> str:
    return text[-limit:] if limit else ""


def _copied(packed: Any) -> Any:
    """Return a copy of packed values: unpacking changes them."""
    if type(packed) is list:
        return [_copied(item) for item in packed]
    if type(packed) is dict:
        return {name: _copied(item) for name, item in packed.items()}
    return packed


def _build_bare(cls: type) -> BaseException:
    try:
        return build(cls, [])
    except Exception as failure:
        msg = (
            f"{class_name(cls)} cannot be made without its constructor ({failure}); "
            "durable.register_exception() says how to record it"
        )
        raise _NoFormError(msg) from failure


def _has_text(error: BaseException) -> bool:
    try:
        str(error)
    except Exception:
        return False
    return True
