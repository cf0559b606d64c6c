"""For how long the retry of a request that failed is refused."""

from __future__ import annotations

import datetime
import math
import re
from email.utils import parsedate_to_datetime

from asgi_durable.middleware.asgi import Headers, header_values
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.retry import RetryPolicy

__all__ = ["RETRY_AFTER", "policys_delay", "said_delay", "whole_seconds"]

RETRY_AFTER = b"retry-after"
_SECONDS = re.compile(rb"[0-9]+")
# More of them are a number of seconds that is cut anyway.
_MOST_DIGITS = 18


def policys_delay(policy: IdempotencyPolicy, attempts: int) -> float:
    """Return the seconds that a policy gives, 0.0 for none; ``policy.max_lifetime`` at most.

    Args:
        policy: The request's.
        attempts: How often the request was tried.
    """
    delay = policy.retry_delay
    seconds = delay.delay_seconds(attempts) if isinstance(delay, RetryPolicy) else delay or 0.0
    return min(seconds, policy.max_lifetime)


def said_delay(policy: IdempotencyPolicy, headers: Headers) -> float | None:
    """Return the seconds that an answer says itself, ``None`` if it says none.

    Args:
        policy: The request's; ``max_lifetime`` is the longest.
        headers: Of the answer.
    """
    seconds = _said_seconds(headers)
    return None if seconds is None else min(max(seconds, 0.0), policy.max_lifetime)


def whole_seconds(seconds: float) -> bytes:
    """Return seconds as a header has them, rounded up."""
    return b"%d" % math.ceil(seconds)


def _said_seconds(headers: Headers) -> float | None:
    """Return what ``Retry-After`` says (RFC 9110, section 10.2.3), ``None`` for nothing legible."""
    said = header_values(headers, RETRY_AFTER)
    if not said:
        return None
    value = said[0].strip()
    if _SECONDS.fullmatch(value):
        return float(value[:_MOST_DIGITS])
    try:
        at = parsedate_to_datetime(value.decode("ascii"))
    except ValueError:
        return None
    # A date of no time zone is one of UTC.
    now = datetime.datetime.now(datetime.UTC)
    return (at.replace(tzinfo=at.tzinfo or datetime.UTC) - now).total_seconds()
