"""The delay before a retry of a failed request is served."""

from __future__ import annotations

import datetime
import math
import re
from email.utils import parsedate_to_datetime

from asgi_durable.middleware.asgi import Headers, header_values
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.retry import RetryPolicy

__all__ = ["RETRY_AFTER", "policy_delay", "response_delay", "whole_seconds"]

RETRY_AFTER = b"retry-after"
_SECONDS = re.compile(rb"[0-9]+")
# Numbers with more digits are above any `max_lifetime`.
_MOST_DIGITS = 18


def policy_delay(policy: IdempotencyPolicy, attempts: int) -> float:
    """Return a policy's delay in seconds, 0.0 for none; ``policy.max_lifetime`` at most.

    Args:
        policy: The request's.
        attempts: Number of attempts so far.
    """
    delay = policy.retry_delay
    seconds = delay.delay_seconds(attempts) if isinstance(delay, RetryPolicy) else delay or 0.0
    return min(seconds, policy.max_lifetime)


def response_delay(policy: IdempotencyPolicy, headers: Headers) -> float | None:
    """Return the delay in seconds of a response's ``Retry-After``, ``None`` if it has none.

    Args:
        policy: The request's; ``max_lifetime`` is the longest delay.
        headers: The response's.
    """
    seconds = _seconds_in(headers)
    return None if seconds is None else min(max(seconds, 0.0), policy.max_lifetime)


def whole_seconds(seconds: float) -> bytes:
    """Return a header's value for a number of seconds, rounded up."""
    return b"%d" % math.ceil(seconds)


def _seconds_in(headers: Headers) -> float | None:
    """Return the seconds of ``Retry-After`` (RFC 9110, section 10.2.3), ``None`` if illegible."""
    lines = header_values(headers, RETRY_AFTER)
    if not lines:
        return None
    value = lines[0].strip()
    if _SECONDS.fullmatch(value):
        return float(value[:_MOST_DIGITS])
    try:
        at = parsedate_to_datetime(value.decode("ascii"))
    except ValueError:
        return None
    # A date without a time zone is in UTC.
    now = datetime.datetime.now(datetime.UTC)
    return (at.replace(tzinfo=at.tzinfo or datetime.UTC) - now).total_seconds()
