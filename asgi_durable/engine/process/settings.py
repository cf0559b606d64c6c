"""How long what may take, and how much there may be of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from asgi_durable.engine.requests.retention import (
    REQUEST_LIFETIME_SECONDS,
    SWEEP_INTERVAL_SECONDS,
    Retention,
)
from asgi_durable.errors import DurableUsageError

__all__ = ["SPOOLED_BYTES", "Limits", "positive_seconds"]

SPOOLED_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long what may take, in seconds, and how much there may be of it.

    Attributes:
        drain_timeout_seconds: How long a stop waits for runs before it interrupts them.
        patience_seconds: How long a failing storage is tried before a run is given up.
        lease_seconds: How long the process counts as alive without a sign of life.
        request_lifetime_seconds: How long a request is kept that waits for its retry.
        sweep_interval_seconds: How often expired requests are looked for.
        cancelled_requests: For how long requests are kept that are cancelled.
        spooled_bytes: How much the bodies of duplicates may take on the disk.
    """

    drain_timeout_seconds: float
    patience_seconds: float
    lease_seconds: float
    request_lifetime_seconds: float = REQUEST_LIFETIME_SECONDS
    sweep_interval_seconds: float = SWEEP_INTERVAL_SECONDS
    cancelled_requests: Retention = field(default_factory=Retention)
    spooled_bytes: int = SPOOLED_BYTES


def positive_seconds(seconds: float, name: str) -> float:
    """Return a number of seconds.

    Raises:
        DurableUsageError: It is not positive, or has no end.
    """
    if not 0 < seconds < float("inf"):
        msg = f"{name} must be a positive number of seconds, got {seconds!r}"
        raise DurableUsageError(msg)
    return seconds
