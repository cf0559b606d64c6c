"""The ids of workflows that are requests: made of a key and its scope, by a secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from asgi_durable.ids import KEY_CHARACTERS, PRINCIPAL_CHARACTERS

__all__ = ["RequestIds", "digest_of", "former_workflow_id", "hash_of", "is_former_request_of"]


class RequestIds:
    """Makes the ids of the requests of one database.

    Without the secret nobody can choose an id, or learn from an id its sender, credentials or key.
    The first part of an id stands for the sender. The method and the path are in the fingerprint:
    the same key on another endpoint is a mistake of the client, who gets an error.

    Args:
        secret: The secret of the database.
        may_be_former: True if it may have requests whose ids were made without the secret.
    """

    def __init__(self, secret: bytes, *, may_be_former: bool = False) -> None:
        self.may_be_former = may_be_former
        # Copied for each id: the secret is hashed once.
        self._sender = _keyed(secret, b"sender", PRINCIPAL_CHARACTERS)
        self._key = _keyed(secret, b"key", KEY_CHARACTERS)

    def workflow_id(self, sender: Sequence[bytes], *key: bytes) -> str:
        """Return the workflow id of a key.

        Args:
            sender: The sender of the key.
            key: The key, and the other parts of its scope.
        """
        hashed = self._key.copy()
        # With the number of its parts, so that no part of a sender is taken for one of a key.
        hashed.update(len(sender).to_bytes(8, "big") + _joined(sender) + _joined(key))
        return self._sender_part(sender) + _base32(hashed.digest(), KEY_CHARACTERS)

    def is_request_of(self, sender: Sequence[bytes], workflow_id: str) -> bool:
        """Tell whether a request's workflow is a sender's."""
        return _begins_with(workflow_id, self._sender_part(sender))

    def _sender_part(self, sender: Sequence[bytes]) -> str:
        hashed = self._sender.copy()
        hashed.update(_joined(sender))
        return _base32(hashed.digest(), PRINCIPAL_CHARACTERS)


def former_workflow_id(principal: bytes, key: bytes, endpoint: bytes | None = None) -> str:
    """Return the id that a key had before ids were made with a secret."""
    parts = (principal, key) if endpoint is None else (principal, key, endpoint)
    key_part = _base32(digest_of(b"asgi-durable request", *parts), KEY_CHARACTERS)
    return _former_principal_part(principal) + key_part


def is_former_request_of(principal: bytes, workflow_id: str) -> bool:
    """Tell whether a workflow with a former id is a principal's."""
    return _begins_with(workflow_id, _former_principal_part(principal))


def _former_principal_part(principal: bytes) -> str:
    return _base32(digest_of(b"asgi-durable principal", principal), PRINCIPAL_CHARACTERS)


def _begins_with(workflow_id: str, part: str) -> bool:
    return hmac.compare_digest(workflow_id[:PRINCIPAL_CHARACTERS].encode(), part.encode())


def _keyed(secret: bytes, use: bytes, characters: int) -> hashlib.blake2b:
    # Five bytes make eight characters.
    return hashlib.blake2b(key=secret, person=use, digest_size=-(-characters // 8) * 5)


def _base32(digest: bytes, characters: int) -> str:
    """Return the first characters of a hash."""
    return base64.b32encode(digest)[:characters].decode("ascii").lower()


def digest_of(*parts: bytes) -> bytes:
    """Return the hash of some parts; other parts have another one."""
    return hash_of(*parts).digest()


def hash_of(*parts: bytes) -> hashlib._Hash:
    """Return a hash of some parts, to be updated with more."""
    return hashlib.sha256(_joined(parts))


def _joined(parts: Sequence[bytes]) -> bytes:
    """Return some parts in a row; a length before each keeps ("ab", "c") and ("a", "bc") apart."""
    return b"".join([len(part).to_bytes(8, "big") + part for part in parts])
