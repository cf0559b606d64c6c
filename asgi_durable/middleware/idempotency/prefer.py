"""What a client prefers (RFC 7240)."""

from __future__ import annotations

import re

from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.middleware.asgi import Scope, header_values

__all__ = ["Preferences", "preferences"]

_WAIT = re.compile(rb'wait *= *"?([0-9]{1,9})"?(?: *;.*)?', re.IGNORECASE)
_ASYNC = re.compile(rb'respond-async(?: *= *"")?(?: *;.*)?', re.IGNORECASE)


@fast_dataclass()
class Preferences:
    """How long a client wants to wait, and for what.

    Attributes:
        wait_seconds: ``None`` if it does not say.
        respond_async: True if it would rather be told where to look than wait for long.
    """

    wait_seconds: float | None = None
    respond_async: bool = False

    def wait_at_most(self, seconds: float) -> float:
        """Return for how long it waits where the server allows so many seconds."""
        if self.wait_seconds is not None:
            return min(self.wait_seconds, seconds)
        return 0.0 if self.respond_async else seconds


_NONE = Preferences()


def preferences(scope: Scope) -> Preferences:
    """Read ``Prefer``; the first of equal preferences counts.

    What cannot be read is no preference, as RFC 7240 demands.
    """
    lines = header_values(scope["headers"], b"prefer")
    if not lines:
        return _NONE
    given = [preference.strip() for preference in b",".join(lines).split(b",")]
    waits = [float(found[1]) for found in map(_WAIT.fullmatch, given) if found]
    return Preferences(
        wait_seconds=waits[0] if waits else None,
        respond_async=any(map(_ASYNC.fullmatch, given)),
    )
