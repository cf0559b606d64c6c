"""The isolation levels of SQL."""

from __future__ import annotations

from asgi_durable.errors import DurableUsageError

__all__ = ["checked_isolation_level"]

LEVELS = ("READ COMMITTED", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def checked_isolation_level(level: str | None) -> str | None:
    """Return a level as SQL spells it; ``None`` is the database's default.

    Raises:
        DurableUsageError: There is no such level.
    """
    if level is None:
        return None
    spelled = " ".join(level.upper().split())
    if spelled not in LEVELS:
        msg = f"isolation_level must be one of {', '.join(LEVELS)}; got {level!r}"
        raise DurableUsageError(msg)
    return spelled
