"""Time limits and sizes of the engine, and how long requests are stored."""

from __future__ import annotations

from dataclasses import dataclass, field

from asgi_durable.errors import DurableUsageError
from asgi_durable.fast_dataclass import fast_dataclass

__all__ = [
    "DAY_SECONDS",
    "REQUEST_LIFETIME_SECONDS",
    "SPOOLED_BYTES",
    "SWEEP_INTERVAL_SECONDS",
    "Limits",
    "Retention",
    "microseconds",
    "positive_seconds",
]

DAY_SECONDS = 24 * 60 * 60.0
REQUEST_LIFETIME_SECONDS = 7 * DAY_SECONDS
SWEEP_INTERVAL_SECONDS = 60.0
MICROSECONDS = 1_000_000
# A hundred years: databases cannot hold an infinite time.
LONGEST_SECONDS = 36500 * DAY_SECONDS
SPOOLED_BYTES = 1024 * 1024 * 1024


@fast_dataclass()
class Retention:
    """How long a request is stored after its completion.

    Attributes:
        seconds: How long its retries get the stored response.
        tombstone_seconds: How long its key is refused after that, until the key is free.
    """

    seconds: float = DAY_SECONDS
    tombstone_seconds: float = 0.0

    def ends_of(self, finished_at_us: int) -> tuple[int, int]:
        """Return when the response expires and when the key is free, in microseconds.

        Args:
            finished_at_us: When the request completed, in microseconds since 1970.
        """
        expires_at_us = finished_at_us + microseconds(self.seconds)
        return expires_at_us, expires_at_us + microseconds(self.tombstone_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits of the engine in seconds, and its limit of disk space.

    Attributes:
        drain_timeout_seconds: How long a stop waits for active runs before it interrupts them.
        storage_retry_seconds: How long an unavailable storage is retried before a run is given
            up.
        lease_seconds: How long the process counts as alive after its last heartbeat.
        request_lifetime_seconds: How long a request without a response waits for its retry.
        sweep_interval_seconds: Time between two searches for expired requests.
        cancelled_requests: How long cancelled requests are stored.
        spooled_bytes: Bytes that the bodies of duplicate requests may take on the disk.
    """

    drain_timeout_seconds: float
    storage_retry_seconds: float
    lease_seconds: float
    request_lifetime_seconds: float = REQUEST_LIFETIME_SECONDS
    sweep_interval_seconds: float = SWEEP_INTERVAL_SECONDS
    cancelled_requests: Retention = field(default_factory=Retention)
    spooled_bytes: int = SPOOLED_BYTES


def positive_seconds(seconds: float, name: str) -> float:
    """Return a number of seconds.

    Raises:
        DurableUsageError: It is not positive, or infinite.
    """
    if not 0 < seconds < float("inf"):
        msg = f"{name} must be a positive number of seconds, got {seconds!r}"
        raise DurableUsageError(msg)
    return seconds


def microseconds(seconds: float) -> int:
    """Return a time span in microseconds, cut to the longest one that a database can hold."""
    return round(min(seconds, LONGEST_SECONDS) * MICROSECONDS)
