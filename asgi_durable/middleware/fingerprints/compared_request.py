"""The fingerprints of one request: of the current version, and of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asgi_durable.codec.sealing.keyed_fingerprints import KeyedFingerprints
from asgi_durable.middleware.asgi import Scope
from asgi_durable.middleware.fingerprints.body_meaning import MAX_BYTES_ON_LOOP
from asgi_durable.middleware.fingerprints.fingerprint import RequestHash, request_fingerprint
from asgi_durable.middleware.fingerprints.former_fingerprint import (
    FormerHash,
    former_fingerprint,
    is_former,
)
from asgi_durable.middleware.fingerprints.json_members import JsonMembers
from asgi_durable.middleware.request_bodies.long_body import ChunkHash
from asgi_durable.middleware.request_bodies.threads import run_in_thread

__all__ = ["ComparedRequest"]

UNKEYED = KeyedFingerprints(())


class ComparedRequest:
    """Makes the fingerprints of a request.

    Args:
        scope: The request's. It is read before the app is called, which may change it.
        configured: The policy's way to make the fingerprint; see ``request_fingerprint``.
        merges_slashes: See ``request_fingerprint``.
        keyed: Turns fingerprints into keyed ones, where there are encryption keys.
    """

    def __init__(
        self,
        scope: Scope,
        configured: Callable[[Scope, bytes], str] | JsonMembers | None,
        *,
        merges_slashes: bool,
        keyed: KeyedFingerprints = UNKEYED,
    ) -> None:
        self._scope = scope
        self._configured = configured
        self._is_application_own = configured is not None and not isinstance(
            configured, JsonMembers
        )
        self._merges_slashes = merges_slashes
        self._keyed = keyed
        self._body: bytes | None = None
        self._is_byte_for_byte = False
        # The fingerprint of a whole body, not keyed.
        self._fingerprint = ""

    async def fingerprint_of(self, body: bytes, *, byte_for_byte: bool) -> str:
        """Return the fingerprint of the request with a whole body.

        Args:
            body: The whole body.
            byte_for_byte: True to compare the body byte for byte, like a longer one that arrives
                in chunks.

        Raises:
            PolicyFailedError: The policy's function failed.
        """
        self._body, self._is_byte_for_byte = body, byte_for_byte
        if byte_for_byte:
            self._fingerprint = _digested(self._hashing(), body)
        elif self._is_application_own or not self._takes_long(body):
            self._fingerprint = self._fingerprint_of_meaning(body)
        else:
            self._fingerprint = await run_in_thread(self._fingerprint_of_meaning, body)
        return self._keyed.of(self._fingerprint)

    def fingerprint_like(self, stored: str | None) -> str:
        """Return the fingerprint in the version of a stored one.

        It is empty for a body that is not whole.

        Raises:
            EncryptionKeyMissingError: The stored one was made with a key that this process does
                not have.
        """
        return self._keyed.like(self._plain_like(self._keyed.plain_version(stored)), stored)

    def all_fingerprints(self) -> Sequence[str]:
        """Return every form in which the fingerprint may be recorded; none if it is unknown."""
        return self._keyed.all_of(self._fingerprint) if self._fingerprint else ()

    def _plain_like(self, stored: str | None) -> str:
        if self._body is None or not is_former(stored) or self._is_application_own:
            return self._fingerprint
        if self._is_byte_for_byte:
            return _digested(FormerHash(self._scope), self._body)
        members = self._configured
        pointers = members.pointers if isinstance(members, JsonMembers) else None
        return former_fingerprint(self._scope, self._body, pointers)

    def hashing(self, stored: str | None = None) -> ChunkHash:
        """Return the hash for a body in chunks, in the version of a stored fingerprint.

        Raises:
            EncryptionKeyMissingError: The stored one was made with a key that this process does
                not have.
        """
        return _KeyedHash(self._hashing(self._keyed.plain_version(stored)), self._keyed, stored)

    def _hashing(self, stored: str | None = None) -> ChunkHash:
        if is_former(stored):
            return FormerHash(self._scope)
        return RequestHash(self._scope, merges_slashes=self._merges_slashes)

    def _fingerprint_of_meaning(self, body: bytes) -> str:
        return request_fingerprint(
            self._scope, body, self._configured, merges_slashes=self._merges_slashes
        )

    def _takes_long(self, body: bytes) -> bool:
        is_compressed = b"content-encoding" in [name.lower() for name, _ in self._scope["headers"]]
        return is_compressed or len(body) > MAX_BYTES_ON_LOOP


class _KeyedHash:
    """Hashes a body in chunks, in the version of a stored fingerprint if there is one."""

    def __init__(self, hashing: ChunkHash, keyed: KeyedFingerprints, stored: str | None) -> None:
        self.add = hashing.add
        self._hashing = hashing
        self._keyed = keyed
        self._stored = stored

    def fingerprint(self) -> str:
        plain = self._hashing.fingerprint()
        if self._stored is None:
            return self._keyed.of(plain)
        return self._keyed.like(plain, self._stored)


def _digested(hashing: ChunkHash, body: bytes) -> str:
    hashing.add(body)
    return hashing.fingerprint()
