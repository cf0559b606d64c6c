"""What problem answers to the keyed request being handled say of it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ProblemContext", "current_problem_context"]


@dataclass(slots=True)
class ProblemContext:
    """What every problem answer to a keyed request says of it.

    Attributes:
        members: Of the problem object: ``idempotency_key``, ``instance``, ``run``.
        is_resumed: True once its log is kept, and a retry goes on with what is recorded.
        retry_delay: Seconds that its policy gives before the next try.
        is_told_when: True once an answer says by itself when that is.
    """

    members: dict[str, Any] = field(default_factory=dict)
    is_resumed: bool = False
    retry_delay: float = 0.0
    is_told_when: bool = False


current_problem_context: ContextVar[ProblemContext | None] = ContextVar(
    "asgi_durable_current_key", default=None
)
