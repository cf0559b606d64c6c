"""How often a log says that something is tried again."""

from __future__ import annotations

__all__ = ["is_worth_a_line"]


def is_worth_a_line(attempt: int) -> bool:
    """Tell whether a failed attempt is logged, counted from 1: fewer and fewer of them are."""
    return attempt & (attempt - 1) == 0
