"""How exceptions are written into the step log and come back.

They are stored as type, message, arguments, attributes, cause, notes and traceback text, a
``DurableError`` with what it says to HTTP clients. The traceback's text comes back as a note, so
whatever prints the exception shows where it was raised.
A class is found again only among the modules that are already loaded, and is rebuilt
without calling its ``__init__``: odd constructors cannot break a replay, and no stored
name makes code run. What cannot be rebuilt comes back as ``RemoteError``.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeGuard

from asgi_durable.codec.recorded_answers import pack_answer, stand_in
from asgi_durable.errors import DurableError, RemoteError

__all__ = ["RecordedTraceback", "forget_traceback", "pack_exception", "unpack_exception"]

# Kept on rebuilt exceptions, so that recording one again keeps the first traceback.
TRACEBACK_ATTRIBUTE = "durable_traceback"
# Of an exception itself, and of one that it refers to.
MAX_TRACEBACK_CHARACTERS = (16_384, 2_048)
_OWN_CODE = f"{Path(__file__).parent.parent}{os.sep}"
_NOTE_HEADING = "Recorded traceback, of where the error was raised first:"
MAX_MESSAGE_CHARACTERS = 65_536
MAX_LINE_CHARACTERS = 1_000
MAX_LEVELS = 4

_level: ContextVar[int] = ContextVar("asgi_durable_exception_level", default=0)

Pack = Callable[[object], Any]
Unpack = Callable[[Any], Any]


class RecordedTraceback(str):
    """The note that shows a recorded traceback; it is not recorded as a note again."""

    __slots__ = ()


def pack_exception(error: BaseException, pack: Pack) -> dict[str, Any]:
    """Return an exception as JSON values.

    Exceptions in its arguments and attributes, and its causes, are packed as well, down to
    a few levels: they may refer to each other. Below that only type and message are kept.

    Args:
        error: The exception.
        pack: Packs a value, or returns ``None`` for what cannot be recorded.
    """
    level = _level.get()
    token = _level.set(level + 1)
    try:
        return _pack(error, pack, level)
    finally:
        _level.reset(token)


def _pack(error: BaseException, pack: Pack, level: int) -> dict[str, Any]:
    cls = type(error)
    whole = level < MAX_LEVELS
    packed: dict[str, Any] = {
        "t": f"{cls.__module__}:{cls.__qualname__}",
        "m": _message(error)[:MAX_MESSAGE_CHARACTERS],
        "a": [pack(argument) for argument in _arguments(error)] if whole else [],
        "s": _attributes(error, pack) if whole else {},
        "tb": _traceback_text(error)[-MAX_TRACEBACK_CHARACTERS[level > 0] :],
    }
    if isinstance(error, RemoteError):
        packed["t"], packed["m"] = error.type_name, error.message
    if _has_answer(error):
        packed["d"] = pack_answer(error)
    notes = [str(note) for note in _own_notes(error)]
    if notes:
        packed["n"] = notes
    cause = error.__cause__
    if cause is not None and whole:
        packed["c"] = pack(cause)
    return packed


def _has_answer(error: BaseException) -> TypeGuard[DurableError]:
    """Tell whether an error, or the one that it stands for, says how it is answered."""
    if isinstance(error, RemoteError):
        return error.shown_detail is not None
    return isinstance(error, DurableError)


def _attributes(error: BaseException, pack: Pack) -> dict[str, Any]:
    left_out = ("__notes__", TRACEBACK_ATTRIBUTE)
    return {name: pack(value) for name, value in vars(error).items() if name not in left_out}


def unpack_exception(packed: dict[str, Any], unpack: Unpack) -> BaseException:
    """Return the exception that was packed, or a ``RemoteError`` in its place."""
    error = _rebuild(packed, unpack)
    if error is None:
        error = stand_in(packed["t"], packed["m"], packed.get("d"))
    # Past the class's own __setattr__, which may refuse.
    vars(error)[TRACEBACK_ATTRIBUTE] = packed["tb"]
    notes = list(packed.get("n", ()))
    if packed["tb"]:
        notes.append(RecordedTraceback(f"{_NOTE_HEADING}\n{packed['tb'].rstrip()}"))
    if notes:
        vars(error)["__notes__"] = notes
    if "c" in packed:
        error.__cause__ = unpack(packed["c"])
    return error


def forget_traceback(error: BaseException) -> None:
    """Take the recorded traceback off an exception that gets a traceback of its own."""
    vars(error).pop(TRACEBACK_ATTRIBUTE, None)
    notes = _own_notes(error)
    vars(error).pop("__notes__", None)
    if notes:
        vars(error)["__notes__"] = notes


def _own_notes(error: BaseException) -> list[Any]:
    notes = getattr(error, "__notes__", ())
    return [note for note in notes if not isinstance(note, RecordedTraceback)]


def _rebuild(packed: dict[str, Any], unpack: Unpack) -> BaseException | None:
    cls = _find_loaded_class(packed["t"])
    if cls is None:
        return None
    try:
        arguments = unpack(packed["a"])
        # Only a built-in class's own code runs: it fills errno and the like of OSError.
        builtin = _builtin_base(cls)
        error: BaseException = builtin.__new__(cls, *arguments)
        builtin.__init__(error, *arguments)
        vars(error).update(unpack(packed["s"]))
        same_message = str(error) == packed["m"]
    except Exception:
        return None
    return error if same_message else None


def _find_loaded_class(name: str) -> Any:
    """Return the exception class of this name in a loaded module; nothing is imported."""
    module_name, _, qualified_name = name.partition(":")
    found: Any = sys.modules.get(module_name)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        return None
    return found


def _builtin_base(cls: type) -> Any:
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _arguments(error: BaseException) -> tuple[Any, ...]:
    """Return what the built-in class wants to be made of: OSError keeps some outside args."""
    try:
        arguments: tuple[Any, ...] = _builtin_base(type(error)).__reduce__(error)[1]
    except Exception:
        return error.args
    return arguments


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"<no message: __str__ raised {type(failure).__name__}>"


def _traceback_text(error: BaseException) -> str:
    kept = getattr(error, TRACEBACK_ATTRIBUTE, None)
    if isinstance(kept, str):
        return kept
    frames = _frames_of(error)
    # A cause is recorded with a traceback of its own, what was handled meanwhile is not.
    context = error.__context__
    if context is None or error.__suppress_context__ or not frames:
        return frames
    first = f"{type(context).__qualname__}: {_message(context)[:MAX_LINE_CHARACTERS]}"
    between = "While that was handled, another error was raised:"
    return f"{_frames_of(context)}{first}\n\n{between}\n\n{frames}"


def _frames_of(error: BaseException) -> str:
    """Return the frames of an exception's traceback, without the library's own."""
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not frame.filename.startswith(_OWN_CODE)]
    if not frames:
        return ""
    lines = traceback.StackSummary.from_list(others or frames).format()
    return "".join(["Traceback (most recent call last):\n", *lines])
