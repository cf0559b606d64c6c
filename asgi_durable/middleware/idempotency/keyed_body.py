"""The body of a keyed request: read before the app is called, or passed on as it arrives."""

from __future__ import annotations

from dataclasses import replace

from asgi_durable.codec.sealing.keyed_fingerprints import KeyedFingerprints
from asgi_durable.engine.process.spool import SpoolSpace
from asgi_durable.engine.requests.claims import FingerprintWanted
from asgi_durable.errors import DurableError
from asgi_durable.ids import new_id
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.fingerprints.compared_request import ComparedRequest
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.request_bodies.body_source import BodySource, source_behind
from asgi_durable.middleware.request_bodies.long_body import (
    ChunkedBody,
    LongBody,
    RefusedBody,
    SpentBody,
    SpooledBody,
)
from asgi_durable.middleware.request_bodies.replayed_body import (
    ClientDisconnectedError,
    read_start,
    too_large,
)
from asgi_durable.storage.records import PENDING_FINGERPRINT

__all__ = ["KeyedBody"]


class KeyedBody:
    """Reads the body of a keyed request, and computes the request's fingerprint.

    Args:
        connection: The request's.
        policy: The request's.
        keyed: Computes fingerprints with the encryption key, if there is one.

    Attributes:
        connection: The request's; its ``ahead`` is set if ``receive`` returns the body again.
        content: The whole body, or the object that returns its chunks.
        fingerprint_like: Computes the fingerprint in the version of a stored one.
        other_fingerprints: Returns the fingerprints that other versions may have stored.
    """

    def __init__(
        self, connection: Connection, policy: IdempotencyPolicy, keyed: KeyedFingerprints
    ) -> None:
        self.connection = connection
        self.content: bytes | ChunkedBody = b""
        self._policy = policy
        self._source: BodySource | None = None
        self._compared = ComparedRequest(
            connection.scope,
            policy.make_fingerprint,
            merges_slashes=connection.merges_slashes,
            keyed=keyed,
        )
        self.fingerprint_like = self._compared.fingerprint_like
        self.other_fingerprints = self._compared.all_fingerprints

    async def read(self) -> str:
        """Read the body, and return the request's fingerprint.

        Only the start of a long body is read. Its fingerprint is not known yet, and a
        placeholder is returned.

        Raises:
            ClientDisconnectedError: The client disconnected before its request was complete.
            DurableError: The body is too long.
        """
        scope, policy, receive = self.connection.scope, self._policy, self.connection.receive
        source = self._source = source_behind(scope, receive)
        read = source.read_ahead if source is not None else receive
        try:
            start, is_whole = await read_start(scope, read, policy.max_request_body)
        except (ClientDisconnectedError, DurableError):
            raise
        except Exception as error:  # raised by a middleware around this one
            self.content = RefusedBody(error)
            return PENDING_FINGERPRINT + new_id()
        self.content = start
        is_long = not is_whole or len(start) > policy.max_request_body
        if is_long and policy.oversize == "reject":
            raise too_large(policy.max_request_body)
        if is_whole:
            if source is not None:
                self.connection = replace(self.connection, ahead=source)
            return await self._compared.fingerprint_of(start, byte_for_byte=is_long)
        hashing = self._compared.hashing()
        self.content = LongBody(b"" if source is not None else start, receive, hashing)
        return PENDING_FINGERPRINT + new_id()

    async def read_whole(self, wanted: FingerprintWanted, spool: SpoolSpace) -> str:
        """Read a long body to its end, and return its fingerprint.

        If the request that has the key is not finished, the next claim may resume it with this
        body. So the body is stored on the disk.

        Args:
            wanted: The request that has the key.
            spool: The space on the disk.

        Raises:
            ClientDisconnectedError: The client disconnected. A truncated body never passes for a
                whole one.
            DurableError: The disk has no space for the body, or this process lacks the encryption
                key of the other request's fingerprint.
            Exception: A middleware refused the body.
        """
        body = self.content
        if isinstance(body, RefusedBody):
            raise body.refusal()
        if not isinstance(body, LongBody):
            msg = "a body that is whole has a fingerprint"
            raise TypeError(msg)
        if self._source is not None:
            # Past the middlewares between: one that limits bodies may not know the route's limit
            # yet.
            body.read_from(self._source.receive)
        body.hash_with(self._compared.hashing(wanted.workflow.fingerprint))
        if wanted.workflow.is_final:
            await body.read_to_end()
            self.content = SpentBody(wanted.workflow.workflow_id)
        else:
            self.content = await SpooledBody.of(body, spool)
        if body.is_cut:
            self.close()
            raise ClientDisconnectedError
        return body.fingerprint

    def give_again(self) -> None:
        """Prepare for another attempt, which gets the body from memory.

        It does not pass the middlewares between again: one that counts bytes has counted these.
        """
        if self._source is not None:
            self._source.forget()
            self.connection = replace(self.connection, ahead=None)

    def close(self) -> None:
        """Release the storage of the body."""
        if not isinstance(self.content, bytes):
            self.content.close()
