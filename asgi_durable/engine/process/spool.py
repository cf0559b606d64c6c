"""How much of the disk the bodies of duplicates take while they are compared."""

from __future__ import annotations

import threading
from collections.abc import Callable

from asgi_durable.codec.sealing.encryption import DiskCipher

__all__ = ["SpoolSpace"]


class SpoolSpace:
    """Counts the bytes that the bodies of one engine's requests have in temporary files.

    Args:
        max_bytes: At most so many at a time.
        new_cipher: Returns what one file is encrypted with, ``None`` where nothing is encrypted.

    Attributes:
        used_bytes: How many there are now.
    """

    def __init__(
        self, max_bytes: int, new_cipher: Callable[[], DiskCipher | None] = lambda: None
    ) -> None:
        self.max_bytes = max_bytes
        self.new_cipher = new_cipher
        self.used_bytes = 0
        # Applications without a lifespan are served on several event loops at once.
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Count bytes that are about to be written; return False if there is no room for them."""
        with self._lock:
            if self.used_bytes + count > self.max_bytes:
                return False
            self.used_bytes += count
            return True

    def give_back(self, count: int) -> None:
        """Count bytes no more."""
        with self._lock:
            self.used_bytes -= count
