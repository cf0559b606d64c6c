"""The disk space that the bodies of duplicate requests take while they are compared."""

from __future__ import annotations

import threading
from collections.abc import Callable

from asgi_durable.codec.sealing.encryption import DiskCipher

__all__ = ["SpoolSpace"]


class SpoolSpace:
    """Counts the bytes that the bodies of one engine's requests take in temporary files.

    Args:
        max_bytes: Greatest number of bytes at a time.
        new_cipher: Returns the cipher of a new file, ``None`` if files are not encrypted.

    Attributes:
        used_bytes: Number of bytes in the files now.
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
        """Reserve bytes that are about to be written; return False if there is no room for them."""
        with self._lock:
            if self.used_bytes + count > self.max_bytes:
                return False
            self.used_bytes += count
            return True

    def give_back(self, count: int) -> None:
        """Release bytes that were reserved."""
        with self._lock:
            self.used_bytes -= count
