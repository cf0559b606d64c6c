"""Takes pydantic models apart for the step log, and rebuilds them without their validators.

The record is pydantic's own pickling state, read by pydantic's own method. It has the names of the
fields that were set, extra values and private attributes.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from asgi_durable.codec.tagged.lost_attributes import refuse_lost_attributes
from asgi_durable.codec.tagged.unrecordable import UnrecordableError
from asgi_durable.errors import DecodeError

__all__ = ["model_content", "rebuild_model"]

_TEXT = frozenset({str})
MEMBERS, EXTRA = "__dict__", "__pydantic_extra__"
FIELDS_SET, PRIVATE = "__pydantic_fields_set__", "__pydantic_private__"


def model_content(value: Any, cls: Any) -> dict[str, Any]:
    """Return what a model is rebuilt from.

    Raises:
        UnrecordableError: It lacks a field, or has an attribute that is none.
    """
    fields = cls.model_fields
    if not fields.keys() <= value.__dict__.keys():
        name = next(name for name in fields if name not in value.__dict__)
        raise UnrecordableError(cls, f": its field {name!r} is not set")
    refuse_lost_attributes(value, cls, fields.keys())
    content: dict[str, Any] = _base_of(cls).__getstate__(value)
    return content


def rebuild_model(cls: Any, content: Any) -> Any:
    """Return a model made of what was recorded, with its class's fields of today.

    Raises:
        DecodeError: A field is missing that has no default.
    """
    recorded = _part(cls, content, MEMBERS)
    extra = _part(cls, content, EXTRA)
    fields = cls.model_fields
    members = recorded
    if recorded.keys() != fields.keys():
        members = _members_of_today(cls, recorded, extra)
    names = _set_names(content)
    if extra or not names <= fields.keys():
        extra = {name: member for name, member in extra.items() if name not in fields}
        names &= fields.keys() | extra.keys()
    model = object.__new__(cls)
    object.__setattr__(model, MEMBERS, members)
    object.__setattr__(model, FIELDS_SET, names)
    if not getattr(cls, "__pydantic_root_model__", False):
        has_extra = content.get(EXTRA) is not None or cls.model_config.get("extra") == "allow"
        object.__setattr__(model, EXTRA, extra if has_extra else None)
        object.__setattr__(model, PRIVATE, _private(cls, _part(cls, content, PRIVATE)))
    return model


@functools.lru_cache(maxsize=4096)
def _base_of(cls: Any) -> Any:
    """Return pydantic's own base, whose pickling no application has changed."""
    return next(
        base
        for base in cls.__mro__
        if base.__module__.startswith("pydantic.") and "__getstate__" in vars(base)
    )


def _members_of_today(cls: Any, recorded: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    fields = cls.model_fields
    members = {name: member for name, member in recorded.items() if name in fields}
    for name in fields:
        if name not in members:
            members[name] = extra[name] if name in extra else _default(cls, name, members)
    return {name: members[name] for name in fields}


def _set_names(content: dict[str, Any]) -> set[Any]:
    names = content.get(FIELDS_SET)
    # Of text alone: to compare an object would run its own code.
    return names if type(names) is set and _TEXT.issuperset(map(type, names)) else set()


def _part(cls: Any, content: Any, name: str) -> dict[str, Any]:
    part = content.get(name) if type(content) is dict else content
    if part is None and name != MEMBERS:
        return {}
    if type(part) is not dict or not _TEXT.issuperset(map(type, part)):
        msg = f"the recorded state of {cls.__module__}.{cls.__qualname__} is damaged"
        raise DecodeError(msg)
    return part


def _default(cls: Any, name: str, members: dict[str, Any]) -> Any:
    field = cls.model_fields[name]
    if field.is_required():
        path = f"{cls.__module__}.{cls.__qualname__}"
        msg = f"no field {name!r} of {path} is recorded, and it has no default"
        raise DecodeError(msg)
    if getattr(field, "default_factory_takes_validated_data", False):
        return field.get_default(call_default_factory=True, validated_data=members)
    return field.get_default(call_default_factory=True)


def _private(cls: Any, recorded: dict[str, Any]) -> dict[str, Any] | None:
    """Return a model's private attributes, with the defaults of those that are new."""
    attributes = cls.__private_attributes__
    if not attributes:
        return None
    undefined = sys.modules["pydantic_core"].PydanticUndefined
    private = {name: member for name, member in recorded.items() if name in attributes}
    for name, attribute in attributes.items():
        if name not in private:
            factory = attribute.default_factory
            default = attribute.get_default() if factory is None else factory()
            if default is not undefined:
                private[name] = default
    return private
