"""Facts of the keyed request being handled that every problem response to it states."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ProblemContext", "current_problem_context"]


@dataclass(slots=True)
class ProblemContext:
    """Facts of a keyed request that every problem response to it states.

    Attributes:
        members: Members of the problem object: ``idempotency_key``, ``instance``, ``run``.
        is_resumable: True once the request's step log stays, so that a retry continues behind
            its last recorded step.
        retry_delay: Seconds between this attempt and the next one, by the request's policy.
        has_retry_time: True once a problem response has a ``Retry-After`` of its own.
    """

    members: dict[str, Any] = field(default_factory=dict)
    is_resumable: bool = False
    retry_delay: float = 0.0
    has_retry_time: bool = False


current_problem_context: ContextVar[ProblemContext | None] = ContextVar(
    "asgi_durable_current_key", default=None
)
