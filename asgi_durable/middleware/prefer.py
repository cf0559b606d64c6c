"""What a client prefers (RFC 7240)."""

from __future__ import annotations

import re

from asgi_durable.middleware.asgi import Scope, header_values

__all__ = ["wait_seconds"]

_WAIT = re.compile(rb'wait *= *"?([0-9]{1,9})"?(?: *;.*)?', re.IGNORECASE)


def wait_seconds(scope: Scope, max_wait: float) -> float:
    """Return for how long a request is willing to wait: ``Prefer: wait=N``, at most *max_wait*.

    What cannot be read is no preference, as RFC 7240 demands. The first one counts.
    """
    for line in header_values(scope["headers"], b"prefer"):
        for preference in line.split(b","):
            found = _WAIT.fullmatch(preference.strip())
            if found:
                return min(float(found[1]), max_wait)
    return max_wait
