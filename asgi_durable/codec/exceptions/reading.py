"""How exceptions come back from the step log.

No code of the application's runs for it, but the functions that ``register_exception`` was given:
classes are found in dictionaries, made by the built-in class that they derive from, and
attributes are set past their properties. Whether that leads to the same message was looked at
when the exception was recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_durable.codec.exceptions.http_values import unpack_http
from asgi_durable.codec.exceptions.registry import ExceptionRegistry
from asgi_durable.codec.exceptions.stored_responses import stand_in
from asgi_durable.codec.exceptions.traceback_text import TRACEBACK_ATTRIBUTE, traceback_note
from asgi_durable.codec.exceptions.unrecorded import UNRECORDED_ATTRIBUTE, Unrecorded, note_of
from asgi_durable.codec.raw_access import (
    attributes_of,
    build,
    has_own_text,
    is_exception,
    set_arguments,
    set_attributes,
    set_cause,
)
from asgi_durable.errors import DecodeError

__all__ = ["ExceptionReader"]

# The members that a record may have, and their types.
_SHAPES: dict[str, tuple[type, ...]] = {
    "t": (str,),
    "m": (str,),
    "tb": (str,),
    "a": (list,),
    "s": (dict,),
    "n": (list,),
    "c": (dict, type(None)),
    "d": (dict,),
    "r": (bool,),
    "g": (list,),
    "e": (list,),
    "u": (dict,),
}
_PLAIN = (str, int, float, bool, bytes, type(None))

Packed = dict[str, Any]


class ExceptionReader:
    """Makes exceptions of their records.

    Args:
        unpack: Makes a value of its tagged form.
        registry: The classes.
    """

    def __init__(self, unpack: Callable[[Any], Any], registry: ExceptionRegistry) -> None:
        self._unpack = unpack
        self._registry = registry

    def unpack(self, packed: Packed) -> BaseException:
        """Return the exception that was recorded, or a ``RemoteError`` in its place.

        Raises:
            DecodeError: The record is damaged, or a value in it cannot be read.
        """
        _check_shape(packed)
        notes = list(packed.get("n", ()))
        error = self._of_its_class(packed)
        if error is None:
            error = stand_in(packed["t"], packed["m"], packed.get("d"))
            if packed.get("r", True):
                notes.append(_lost_class_note(packed["t"]))
        own = attributes_of(error)
        own[TRACEBACK_ATTRIBUTE] = packed["tb"]
        lost = packed.get("u")
        if lost:
            own[UNRECORDED_ATTRIBUTE] = lost
            notes.append(note_of(packed["t"].replace(":", "."), lost))
        if packed["tb"]:
            notes.append(traceback_note(packed["tb"]))
        if notes:
            own["__notes__"] = notes
        if packed.get("c") is not None:
            self._set_cause(error, packed["c"])
        return error

    def rebuild(self, cls: type, form: Packed) -> BaseException | None:
        """Return an exception of this class, ``None`` if the class can no longer be made so.

        Raises:
            DecodeError: A value cannot be read.
        """
        if "e" in form:
            error = self._from_data(cls, form["e"])
        else:
            arguments = [self.value(item) for item in form["a"]]
            try:
                error = build(cls, arguments)
            except (TypeError, ValueError):
                return None
            if "g" in form:
                set_arguments(error, tuple(self.value(item) for item in form["g"]))
        self._set_attributes(error, form["s"])
        return error

    def value(self, packed: Any) -> Any:
        """Return an argument's or an attribute's value."""
        if type(packed) is dict:
            if packed.get("$") == "held":
                return _held(packed["k"], self._unpack(packed["v"]))
            if packed.get("$") == "unrecorded":
                return Unrecorded(*map(_text, packed["v"]))
        return self._unpack(packed)

    def _of_its_class(self, packed: Packed) -> BaseException | None:
        cls = self._registry.find(packed["t"]) if packed.get("r", True) else None
        if cls is None:
            return None
        # A long message that is the only argument is recorded once.
        form = {"a": [packed["m"]], "s": {}, **packed}
        return self.rebuild(cls, form) if "r" in packed else self._former(cls, form)

    def _former(self, cls: type, form: Packed) -> BaseException | None:
        """Rebuild an exception that an earlier version recorded without rebuilding it once.

        The earlier version compared the messages when it read the record. This one does the same
        where that runs no code of the application.
        """
        bare = self.rebuild(cls, {"a": form["a"][:], "s": {}})
        if bare is None:
            return None
        if not has_own_text(cls) and _is_plain(bare.args) and str(bare) != form["m"]:
            return None
        self._set_attributes(bare, form["s"])
        return bare

    def _set_attributes(self, error: BaseException, packed: Packed) -> None:
        if packed:
            set_attributes(error, {name: self.value(item) for name, item in packed.items()})

    def _from_data(self, cls: type, recorded: list[Any]) -> BaseException:
        name, packed = recorded
        functions = self._registry.functions_of(cls)
        if functions is None or functions[0] != name:
            msg = (
                f"an error was recorded by what register_exception() was given for {name!r}, and "
                "nothing is registered for it in this process"
            )
            raise DecodeError(msg)
        data = self._unpack(packed)
        try:
            made = functions[2](cls, data)
        except Exception as error:
            msg = f"from_data of {name!r} has failed ({type(error).__name__}: {error})"
            raise DecodeError(msg) from error
        return made if type(made) is cls else _as_class(cls, made, name)

    def _set_cause(self, error: BaseException, packed: Packed) -> None:
        cause = self._unpack(packed)
        if not is_exception(cause):
            msg = "the recorded cause of an error is no error"
            raise DecodeError(msg)
        set_cause(error, cause)


def _held(kind: object, data: object) -> Any:
    try:
        return unpack_http(kind, data)
    except DecodeError:
        raise
    except Exception as error:  # libraries have errors of their own
        msg = f"a recorded {kind} cannot be rebuilt ({type(error).__name__}: {error})"
        raise DecodeError(msg) from error


def _as_class(cls: type, made: Any, name: str) -> BaseException:
    """Return an exception of a registered class's subclass, with what was made for the class."""
    if not is_exception(made):
        msg = f"from_data of {name!r} has returned {type(made).__name__}, no exception"
        raise DecodeError(msg)
    error = build(cls, list(made.args))
    attributes_of(error).update(attributes_of(made))
    return error


def _check_shape(packed: Packed) -> None:
    for name in ("t", "m", "tb"):
        if name not in packed:
            msg = f"the record of an error has no member {name!r}"
            raise DecodeError(msg)
    for name, kinds in _SHAPES.items():
        if name in packed and type(packed[name]) not in kinds:
            msg = f"the member {name!r} of an error's record is of a wrong kind"
            raise DecodeError(msg)
    _check_texts(packed.get("n", ()))
    _check_texts(packed.get("u", {}).values())


def _check_texts(values: Any) -> None:
    for value in values:
        _text(value)


def _text(value: object) -> str:
    if type(value) is not str:
        msg = "the record of an error has something else where there has to be text"
        raise DecodeError(msg)
    return value


def _lost_class_note(name: str) -> str:
    return (
        f"Its class {name} is not known in this process, or cannot be made any more; where it was "
        "renamed or moved, durable.register_exception(cls, aliases=[…]) leads to it"
    )


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is tuple or kind is list:
        return all(_is_plain(item) for item in value)
    return kind in _PLAIN
