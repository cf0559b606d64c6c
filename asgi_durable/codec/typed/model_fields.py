"""Which fields of pydantic models were set: ``exclude_unset`` is a part of what they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from asgi_durable.codec.types import is_pydantic_model

__all__ = ["SetFields", "restore_set_fields", "set_fields_of"]

# Where a model is: the names of members, and the places of items; of a dictionary's too.
Path = tuple[str | int, ...]
SetFields = list[tuple[list[str | int], list[str]]]


def set_fields_of(value: object) -> SetFields:
    """Return where models are that have fields nobody has set, each with the fields that are."""
    return [
        (list(path), sorted(model.model_fields_set))
        for path, model in _models(value, ())
        if not model.model_fields_set >= type(model).model_fields.keys()
    ]


def restore_set_fields(value: Any, fields: SetFields) -> Any:
    """Mark the fields of models that were set, and return the models.

    Fields that the code of today does not have any more are left out.
    """
    for path, names in fields:
        model = _follow(value, path)
        if model is not None:
            known = type(model).model_fields.keys() | (model.__pydantic_extra__ or {}).keys()
            set_names = {name for name in names if name in known}
            object.__setattr__(model, "__pydantic_fields_set__", set_names)
    return value


def _models(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if is_pydantic_model(type(value)):
        yield path, value
    for step, member in _members(value):
        yield from _models(member, (*path, step))


def _members(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(enumerate(value.values()))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if is_pydantic_model(type(value)):
        return list(vars(value).items())
    if dataclasses.is_dataclass(value):
        return [
            (field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)
        ]
    return []


def _follow(value: Any, path: list[str | int]) -> Any:
    for step in path:
        members = dict(_members(value))
        if step not in members:
            return None
        value = members[step]
    return value if is_pydantic_model(type(value)) else None
