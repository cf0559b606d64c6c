"""Dataclasses whose objects never change, and that are fast to make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

__all__ = ["fast_dataclass"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def fast_dataclass(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Return a decorator like ``dataclass(frozen=True, slots=True)``, for objects made often.

    Only the type checker refuses assignments. A check at run time would more than double the time
    that it takes to make an object.
    """
    return dataclass(slots=True, kw_only=kw_only, unsafe_hash=True)
