"""How many wait here for a request that somebody carries out already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Duplicates"]

# How many wait for twins at once, in this process; the others are told to come back.
MAX_TWINS = 1000
MAX_TWINS_OF_ONE = 256


class Duplicates(Counter[str]):
    """Counts who waits, by the request's id; their number is bounded."""

    @contextmanager
    def waiting(self, workflow_id: str) -> Iterator[bool]:
        """Count one more inside; give False, and count nothing, if too many wait."""
        if self[workflow_id] >= MAX_TWINS_OF_ONE or self.total() >= MAX_TWINS:
            yield False
            return
        self[workflow_id] += 1
        try:
            yield True
        finally:
            self[workflow_id] -= 1
            if not self[workflow_id]:
                del self[workflow_id]
