"""How long the client of a keyed request waits for its response."""

from __future__ import annotations

import re

from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.middleware.asgi import Scope, header_values
from asgi_durable.middleware.policies.policy import IdempotencyPolicy

__all__ = ["Preferences", "WaitTimes", "preferences", "wait_times"]

_WAIT = re.compile(rb'wait *= *"?([0-9]{1,9})"?(?: *;.*)?', re.IGNORECASE)
_ASYNC = re.compile(rb'respond-async(?: *= *"")?(?: *;.*)?', re.IGNORECASE)


@fast_dataclass()
class WaitTimes:
    """How long the client of a keyed request waits, in seconds.

    Attributes:
        duplicate: The time for which a duplicate waits for the running request.
        accepted_after: The time after which the client gets 202 and the URL of the status page;
            ``None`` for never.
        longest_sleep: The longest sleep of the work that the client waits for; ``None`` for any.
        respond_async: True if the client prefers the URL of a status page over a long wait.
    """

    duplicate: float
    accepted_after: float | None
    longest_sleep: float | None
    respond_async: bool


def wait_times(scope: Scope, policy: IdempotencyPolicy, *, has_pages: bool) -> WaitTimes:
    """Return the times of a request, by its policy and by its ``Prefer`` header.

    Args:
        scope: The request's.
        policy: The request's.
        has_pages: True if the application has status pages.
    """
    preferred = preferences(scope)
    longest = preferred.wait_at_most(policy.max_wait)
    accepted_after = longest if preferred.respond_async else policy.async_after
    return WaitTimes(
        duplicate=longest if policy.dialect == "default" else 0.0,
        # A single transaction is lost with its process: it is not accepted before it is committed.
        accepted_after=None if policy.single_transaction or not has_pages else accepted_after,
        longest_sleep=longest if has_pages else None,
        respond_async=preferred.respond_async,
    )


@fast_dataclass()
class Preferences:
    """A client's preferences (RFC 7240).

    Attributes:
        wait_seconds: Seconds that the client wants to wait; ``None`` if it does not say.
        respond_async: True if it prefers the URL of a status page over a long wait.
    """

    wait_seconds: float | None = None
    respond_async: bool = False

    def wait_at_most(self, seconds: float) -> float:
        """Return the seconds that the client waits if the server allows *seconds*."""
        if self.wait_seconds is not None:
            return min(self.wait_seconds, seconds)
        return 0.0 if self.respond_async else seconds


_NONE = Preferences()


def preferences(scope: Scope) -> Preferences:
    """Read ``Prefer``. The first one of equal preferences counts.

    An illegible preference is ignored, as RFC 7240 demands.
    """
    lines = header_values(scope["headers"], b"prefer")
    if not lines:
        return _NONE
    items = [item.strip() for item in b",".join(lines).split(b",")]
    waits = [float(found[1]) for found in map(_WAIT.fullmatch, items) if found]
    return Preferences(
        wait_seconds=waits[0] if waits else None,
        respond_async=any(map(_ASYNC.fullmatch, items)),
    )
