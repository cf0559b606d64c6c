"""The secret that the ids of requests are made with, whatever the database."""

from __future__ import annotations

import secrets
import time

__all__ = ["OF_REQUEST_IDS", "ROLLOUT_US", "new_secret"]

OF_REQUEST_IDS = "request ids"
# Processes of an earlier version that run on beside a migrated database make ids without the
# secret. Their requests are looked for as well if they were claimed within this time.
ROLLOUT_US = 24 * 3600 * 1_000_000


def new_secret(*, added_later: bool) -> tuple[str, bytes, int, bool]:
    """Return a row with a new secret.

    Args:
        added_later: True for a database that may have requests already.
    """
    return OF_REQUEST_IDS, secrets.token_bytes(32), time.time_ns() // 1000, added_later
