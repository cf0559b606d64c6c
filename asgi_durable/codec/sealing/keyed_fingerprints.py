"""Fingerprints of requests that tell nothing to who has no key."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from asgi_durable.codec.sealing.encryption import EncryptionKey, missing_key

__all__ = ["KeyedFingerprints"]

# Begins a keyed fingerprint; the id of its key follows, what the plain one begins with, and a
# digest of it.
_PREFIX = "k1:"


class KeyedFingerprints:
    """Turns plain fingerprints into keyed ones, where there are encryption keys.

    A plain fingerprint is a digest of the request: who reads it can tell whether a guess of the
    request's body is right.

    Args:
        keys: The encryption keys; none where nothing is encrypted.
    """

    def __init__(self, keys: Sequence[EncryptionKey]) -> None:
        self._keys = {key.id.hex(): key for key in keys}
        self._first = keys[0] if keys else None
        self._all = tuple(keys)

    def of(self, plain: str) -> str:
        """Return a fingerprint as it is recorded."""
        return _keyed(plain, self._first) if self._first is not None and plain else plain

    def like(self, plain: str, stored: str | None) -> str:
        """Return a fingerprint as it was recorded when a stored one was.

        Raises:
            EncryptionKeyMissingError: The stored one was made with a key that is not here.
        """
        if stored is None or not stored.startswith(_PREFIX):
            return plain
        return _keyed(plain, self._key_of(stored)) if plain else plain

    def all_of(self, plain: str) -> tuple[str, ...]:
        """Return all that a fingerprint may be recorded as, what it is recorded as now first."""
        return (*(_keyed(plain, key) for key in self._all), plain)

    def plain_version(self, stored: str | None) -> str | None:
        """Return what begins as the plain fingerprint does that a stored one was made of.

        Raises:
            EncryptionKeyMissingError: It was made with a key that is not here.
        """
        if stored is None or not stored.startswith(_PREFIX):
            return stored
        self._key_of(stored)
        return stored.removeprefix(_PREFIX).partition(":")[2]

    def _key_of(self, stored: str) -> EncryptionKey:
        key_id = stored.removeprefix(_PREFIX).partition(":")[0]
        key = self._keys.get(key_id)
        if key is None:
            raise missing_key(key_id, self._all)
        return key


def _keyed(plain: str, key: EncryptionKey) -> str:
    version, _, _ = plain.partition(":")
    digest = hmac.digest(key.digest_key, b"fingerprint " + plain.encode(), "sha256")
    return f"{_PREFIX}{key.id.hex()}:{version}:{digest.hex()}"
