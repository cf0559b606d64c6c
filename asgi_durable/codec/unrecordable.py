"""What is said of a value that cannot be recorded: which it is, where, and what to do."""

from __future__ import annotations

import asyncio
import dataclasses
import types

from asgi_durable.codec.types import is_named_tuple, is_pydantic_model

__all__ = ["unknown_type_message"]

_GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)


def unknown_type_message(kind: type, path: str) -> str:
    """Return the message of an error about a value of a class that is not known.

    Args:
        kind: The class.
        path: Where the value is.
    """
    return f"{kind.__module__}.{kind.__qualname__} at {path} cannot be recorded{_advice(kind)}"


def _advice(kind: type) -> str:
    if issubclass(kind, types.CoroutineType):
        return ": a coroutine was not awaited"
    if issubclass(kind, asyncio.Future):
        return ": a task was not awaited"
    if issubclass(kind, _GENERATORS):
        return ": a generator is no data; return a list"
    if _is_response(kind):
        return ": return data, not a Response"
    return (
        "; name the class in the function's annotations or call durable.register_type(), if it "
        "is a dataclass, enum, named tuple or pydantic model"
    )


def _is_response(kind: type) -> bool:
    """Tell whether a class is a response of any framework or client, by its name."""
    if dataclasses.is_dataclass(kind) or is_pydantic_model(kind) or is_named_tuple(kind):
        # Of the application's own, and recorded once it is known.
        return False
    return any(base.__name__.endswith("Response") for base in kind.__mro__)
