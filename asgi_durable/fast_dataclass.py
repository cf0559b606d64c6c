"""Classes of values that are never changed once they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

__all__ = ["fast_dataclass"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def fast_dataclass(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Return a decorator like ``dataclass(frozen=True, slots=True)``, for what is made often.

    The type checker refuses assignments. At run time nothing does: that check would more than
    double the time that it takes to make one.
    """
    return dataclass(slots=True, kw_only=kw_only, unsafe_hash=True)
