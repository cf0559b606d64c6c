"""Messages about a value that cannot be recorded: which it is, where, and the remedy."""

from __future__ import annotations

import asyncio
import dataclasses
import types

from asgi_durable.codec.types import is_mapped, is_named_tuple, is_pydantic_model

__all__ = ["ORM_ADVICE", "UnrecordableError", "advice_for", "unrecordable_message"]

_ADVICE: dict[type, str] = {
    types.CoroutineType: ": a coroutine was not awaited",
    asyncio.Future: ": a task was not awaited",
    types.GeneratorType: ": a generator is no data; return a list",
    types.AsyncGeneratorType: ": a generator is no data; return a list",
}
ORM_ADVICE = ": an ORM row; return its data (a dataclass, a dict) instead"


class UnrecordableError(Exception):
    """A value, or a member of it, cannot be recorded.

    Attributes:
        kind: Its class.
        advice: Why, and what to do: the rest of the sentence that names class and place.
    """

    def __init__(self, kind: type, advice: str) -> None:
        super().__init__(kind, advice)
        self.kind = kind
        self.advice = advice


def unrecordable_message(error: UnrecordableError, path: str) -> str:
    """Return the message of an error about a value that cannot be recorded.

    Args:
        error: The reason.
        path: The place of the value.
    """
    return f"{_path_of(error.kind)} at {path} cannot be recorded{error.advice}"


def advice_for(kind: type) -> str:
    """Return what to do about a value of a class that is not known."""
    for base, advice in _ADVICE.items():
        if issubclass(kind, base):
            return advice
    if is_mapped(kind):
        return ORM_ADVICE
    if _path_of(kind).startswith("sqlalchemy.engine."):
        return ": return a tuple(…) of a row of the database, or its _asdict()"
    if _is_response(kind):
        return ": return data, not a Response"
    return (
        "; name the class in the function's annotations or call durable.register_type(), if it "
        "is a dataclass, attrs class, Struct, enum, named tuple or pydantic model"
    )


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_response(kind: type) -> bool:
    """Tell whether a class is a response of any framework or client, by its name."""
    if dataclasses.is_dataclass(kind) or is_pydantic_model(kind) or is_named_tuple(kind):
        # Of the application's own, and recorded once it is known.
        return False
    return any(base.__name__.endswith("Response") for base in kind.__mro__)
