"""The parts of an exception that is to be recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_durable.codec.exceptions.known import names_credentials
from asgi_durable.codec.exceptions.traceback_text import RecordedTraceback, without_credentials
from asgi_durable.codec.exceptions.unrecorded import Unrecorded, UnrecordedNote
from asgi_durable.codec.raw_access import attributes_of, class_name, slots_of

__all__ = ["clean", "described", "dotted", "fields_outside", "made_of", "own_notes", "same"]

MAX_TEXT_CHARACTERS = 10_000
# Never recorded: the object of an AttributeError may be anything, and large.
_NEVER = (AttributeError.obj,)
_group: Any = BaseExceptionGroup


def own_notes(error: BaseException) -> list[str]:
    """Return the notes of an exception that are its own, not made when it was read."""
    notes = attributes_of(error).get("__notes__", ())
    if not isinstance(notes, (list, tuple)):
        return []
    made = (RecordedTraceback, UnrecordedNote)
    return [_text_of(note) for note in notes if not isinstance(note, made)]


def made_of(error: BaseException) -> list[Any]:
    """Return what the built-in class wants to be made of: OSError keeps some outside args."""
    if isinstance(error, BaseExceptionGroup):
        members = _group.exceptions.__get__(error)
        arguments = [_group.message.__get__(error), list(members)]
        return list(error.args) if same(error.args, arguments) else arguments
    reduced: Any = OSError.__reduce__(error) if isinstance(error, OSError) else (None, error.args)
    return clean(error, reduced[1])


def clean(error: BaseException, arguments: tuple[Any, ...]) -> list[Any]:
    """Return arguments without the passwords of URLs."""
    if not names_credentials(error):
        return list(arguments)
    return [without_credentials(value) if type(value) is str else value for value in arguments]


def same(left: Any, right: Any) -> bool:
    """Tell whether two sequences of arguments hold the same objects."""
    return len(left) == len(right) and all(map(_is_same, left, right))


def fields_outside(error: BaseException, plain: BaseException) -> dict[str, Any]:
    """Return the attributes outside the dictionary that arguments alone do not bring back."""
    fields: dict[str, Any] = {}
    for name, member in slots_of(type(error)).items():
        # The members of a group are among its arguments.
        if member.__objclass__ is BaseExceptionGroup or member in _NEVER:
            continue
        try:
            value = member.__get__(error)
        except AttributeError:
            continue
        if not _is_set(member, plain, value):
            fields[name] = value
    return fields


def described(value: object) -> list[str]:
    """Return what stands for an argument that cannot be recorded: its class and its texts."""
    if isinstance(value, Unrecorded):
        return value.description
    return [dotted(type(value)), _shown(repr, value), _shown(str, value)]


def dotted(cls: type) -> str:
    """Return the full name of a class."""
    return class_name(cls).replace(":", ".")


def _is_same(one: Any, other: Any) -> bool:
    # Identity is asked first, as a list may contain itself.
    if one is other or (type(one) is str and type(other) is str and one == other):
        return True
    both = isinstance(one, (list, tuple)) and isinstance(other, (list, tuple))
    return both and same(one, other)


def _is_set(member: Any, plain: BaseException, value: object) -> bool:
    try:
        there = member.__get__(plain)
    except (AttributeError, TypeError):
        return False
    return there is value or (type(there) in (int, str) and there == value)


def _shown(show: Callable[[object], str], value: object) -> str:
    try:
        return without_credentials(show(value))[:MAX_TEXT_CHARACTERS]
    except Exception as failure:
        return f"<{dotted(type(value))}, {type(failure).__name__} in its text>"


def _text_of(note: object) -> str:
    try:
        return note if type(note) is str else str(note)
    except Exception as failure:
        return f"<no note: __str__ raised {type(failure).__name__}>"
