"""Notes of an exception about members that could not be recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asgi_durable.codec.raw_access import attributes_of, is_exception

__all__ = ["UNRECORDED_ATTRIBUTE", "Unrecorded", "UnrecordedNote", "explain_missing", "note_of"]

# Rebuilt exceptions have it: the names of the attributes that are not set, with their classes.
UNRECORDED_ATTRIBUTE = "durable_unrecorded"
_REMEDY = (
    "durable.register_exception() says how to record what an exception holds; a dataclass, enum, "
    "named tuple or pydantic model needs durable.register_type() alone"
)


class UnrecordedNote(str):
    """The note that names what was not recorded; it is not recorded as a note itself."""

    __slots__ = ()


class Unrecorded:
    """Stands in an exception's ``args`` for an argument that the log could not keep.

    It has the text of the argument. Reading anything else of it raises an ``AttributeError``
    that says why.
    """

    __slots__ = ("_repr", "_str", "_type_name")

    def __init__(self, type_name: str, as_repr: str, as_str: str) -> None:
        self._type_name = type_name
        self._repr = as_repr
        self._str = as_str

    @property
    def description(self) -> list[str]:
        """The arguments that another one like this is made of."""
        return [self._type_name, self._repr, self._str]

    def __repr__(self) -> str:
        """Return that of the argument."""
        return self._repr

    def __str__(self) -> str:
        """Return that of the argument."""
        return self._str

    def __eq__(self, other: object) -> bool:
        """Compare the descriptions."""
        return isinstance(other, Unrecorded) and self.description == other.description

    def __hash__(self) -> int:
        """Fit to ``__eq__``."""
        return hash(self._repr)

    def __getattr__(self, name: str) -> Any:
        """Raise an error that explains."""
        msg = (
            f"{name!r} cannot be read: this argument of a recorded exception, a "
            f"{self._type_name}, could not be recorded. {_REMEDY}"
        )
        raise AttributeError(msg, name=name, obj=self)


def note_of(type_name: str, lost: Mapping[str, str]) -> UnrecordedNote:
    """Return the note for an exception without some of its attributes.

    Args:
        type_name: The exception's class.
        lost: The classes of the attributes, by their names.
    """
    listed = ", ".join(f"{name} ({kind})" for name, kind in lost.items())
    return UnrecordedNote(
        f"These attributes of the recorded {type_name} are not set, as they could not be "
        f"recorded: {listed}. {_REMEDY}"
    )


def explain_missing(error: BaseException) -> None:
    """Add a note to an ``AttributeError`` about an attribute that was not recorded."""
    holder: Any = error.obj if isinstance(error, AttributeError) else None
    if not isinstance(error, AttributeError) or not is_exception(holder):
        return
    lost = attributes_of(holder).get(UNRECORDED_ATTRIBUTE)
    if not isinstance(lost, dict) or error.name not in lost:
        return
    note = (
        f"The attribute {error.name!r} of the recorded {_dotted(type(holder))}, a "
        f"{lost[error.name]}, could not be recorded. {_REMEDY}"
    )
    notes = attributes_of(error).setdefault("__notes__", [])
    if note not in notes:
        notes.append(note)


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
