"""Digests of arguments: whether a call is the one that was recorded, without keeping them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

__all__ = ["DIGEST_BYTES", "ArgumentDigest", "digest_of", "digests_of"]

DIGEST_BYTES = 16


class ArgumentDigest:
    """The digest of a call's arguments, 16 bytes.

    Args:
        value: The digest that is recorded now.
        others: Returns other digests that may be recorded for the same arguments: by a former
            version, with another key, or by code without a default that it has now.
    """

    __slots__ = ("_others", "value")

    def __init__(self, value: bytes, others: Callable[[], Iterable[bytes]] = tuple) -> None:
        self.value = value
        self._others = others

    def fits(self, recorded: bytes) -> bool:
        """Tell whether a recorded digest is one of these arguments."""
        return recorded == self.value or any(recorded == other for other in self._others())


def digest_of(data: bytes, key: bytes = b"") -> bytes:
    """Return the digest of arguments."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=key).digest()


def digests_of(data: Iterable[bytes], keys: Iterable[bytes]) -> Iterator[bytes]:
    """Return the digests of each of these with each of the keys."""
    for one in data:
        for key in keys:
            yield digest_of(one, key)
