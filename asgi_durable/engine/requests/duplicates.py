"""The duplicates in this process that wait for a running request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Duplicates"]

# How many duplicates wait at once in this process; the others must come back later.
MAX_DUPLICATES = 1000
MAX_DUPLICATES_OF_ONE = 256


class Duplicates(Counter[str]):
    """Counts the waiting duplicates by the request's id, up to a limit."""

    @contextmanager
    def waiting(self, workflow_id: str) -> Iterator[bool]:
        """Count one more inside; yield False, and count nothing, if too many wait."""
        if self[workflow_id] >= MAX_DUPLICATES_OF_ONE or self.total() >= MAX_DUPLICATES:
            yield False
            return
        self[workflow_id] += 1
        try:
            yield True
        finally:
            self[workflow_id] -= 1
            if not self[workflow_id]:
                del self[workflow_id]
