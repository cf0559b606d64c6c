"""The fingerprints of one request: as they are made now, and as earlier versions made them."""

from __future__ import annotations

import asyncio
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
from asgi_durable.middleware.request_bodies.long_body import PiecewiseHash

__all__ = ["ComparedRequest"]

UNKEYED = KeyedFingerprints(())


class ComparedRequest:
    """Makes the fingerprints of a request.

    Args:
        scope: Its own. It is looked at before the app is called, which may change it.
        configured: What makes the fingerprint, see ``request_fingerprint``.
        merges_slashes: See there.
        keyed: Makes fingerprints keyed ones, where there are encryption keys.
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
        self._merges_slashes = merges_slashes
        self._keyed = keyed
        self._body: bytes | None = None
        self._is_as_it_is = False
        # The plain one, of a whole body.
        self._fingerprint = ""

    async def fingerprint_of(self, body: bytes, *, as_it_is: bool) -> str:
        """Return the fingerprint of the request with a whole body.

        Args:
            body: That.
            as_it_is: True to compare it byte for byte, as a longer one that comes in pieces.

        Raises:
            PolicyFailedError: The application's own way failed.
        """
        self._body, self._is_as_it_is = body, as_it_is
        if as_it_is:
            self._fingerprint = _digested(self._hashing(), body)
        elif self._is_application_own or not self._takes_long(body):
            self._fingerprint = self._meant(body)
        else:
            self._fingerprint = await asyncio.to_thread(self._meant, body)
        return self._keyed.of(self._fingerprint)

    def fingerprint_like(self, stored: str | None) -> str:
        """Return the fingerprint, made in the same way as a stored one.

        It is empty if that cannot be: of a body that is not whole.

        Raises:
            EncryptionKeyMissingError: The stored one was made with a key that is not here.
        """
        return self._keyed.like(self._plain_like(self._keyed.plain_version(stored)), stored)

    def all_fingerprints(self) -> Sequence[str]:
        """Return all that the fingerprint may have been recorded as; none if it is not known."""
        return self._keyed.all_of(self._fingerprint) if self._fingerprint else ()

    def _plain_like(self, stored: str | None) -> str:
        if self._body is None or not is_former(stored) or self._is_application_own:
            return self._fingerprint
        if self._is_as_it_is:
            return _digested(FormerHash(self._scope), self._body)
        members = self._configured
        pointers = members.pointers if isinstance(members, JsonMembers) else None
        return former_fingerprint(self._scope, self._body, pointers)

    def hashing(self, stored: str | None = None) -> PiecewiseHash:
        """Return what makes the fingerprint of a body in pieces, in the way of a stored one.

        Raises:
            EncryptionKeyMissingError: The stored one was made with a key that is not here.
        """
        return _KeyedHash(self._hashing(self._keyed.plain_version(stored)), self._keyed, stored)

    def _hashing(self, stored: str | None = None) -> PiecewiseHash:
        if is_former(stored):
            return FormerHash(self._scope)
        return RequestHash(self._scope, merges_slashes=self._merges_slashes)

    @property
    def _is_application_own(self) -> bool:
        return self._configured is not None and not isinstance(self._configured, JsonMembers)

    def _meant(self, body: bytes) -> str:
        return request_fingerprint(
            self._scope, body, self._configured, merges_slashes=self._merges_slashes
        )

    def _takes_long(self, body: bytes) -> bool:
        is_packed = any(name.lower() == b"content-encoding" for name, _ in self._scope["headers"])
        return is_packed or len(body) > MAX_BYTES_ON_LOOP


class _KeyedHash:
    """Makes the fingerprint of a body in pieces, in the way of a stored one if there is one."""

    def __init__(
        self, hashing: PiecewiseHash, keyed: KeyedFingerprints, stored: str | None
    ) -> None:
        self.add = hashing.add
        self._hashing = hashing
        self._keyed = keyed
        self._stored = stored

    def fingerprint(self) -> str:
        plain = self._hashing.fingerprint()
        if self._stored is None:
            return self._keyed.of(plain)
        return self._keyed.like(plain, self._stored)


def _digested(hashing: PiecewiseHash, body: bytes) -> str:
    hashing.add(body)
    return hashing.fingerprint()
