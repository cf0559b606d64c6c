"""The body of a keyed request: read before the app is called, or handed to it as it arrives."""

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
    """Reads the body of a keyed request, and makes the request's fingerprint.

    Args:
        connection: Where the request came from.
        policy: The request's.
        keyed: Makes fingerprints keyed ones.

    Attributes:
        connection: The same; it says whether ``receive`` gives the body once more.
        content: The whole body, or what it is read from.
        fingerprint_like: Makes the fingerprint in the version of a stored one.
        other_fingerprints: Returns all that the fingerprint may have been recorded as.
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
        """Read the body, or its start, and return the fingerprint, or what stands for it.

        Raises:
            ClientDisconnectedError: The client went away before its request was complete.
            DurableError: The body is too long.
        """
        scope, policy, receive = self.connection.scope, self._policy, self.connection.receive
        source = self._source = source_behind(scope, receive)
        read = source.read_ahead if source is not None else receive
        try:
            start, is_whole = await read_start(scope, read, policy.max_request_body)
        except (ClientDisconnectedError, DurableError):
            raise
        except Exception as error:  # of a middleware around this one
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

        Where the request is not finished the body may be needed, to go on with it: only the
        next claim tells. So it is kept, but not in memory.

        Raises:
            ClientDisconnectedError: The client disconnected. A truncated body never passes for a
                whole one.
            DurableError: There is no room for it, or the encryption key is missing here that the
                other request's fingerprint was made with.
            Exception: A middleware has refused it.
        """
        body = self.content
        if isinstance(body, RefusedBody):
            raise body.refusal()
        if not isinstance(body, LongBody):
            msg = "a body that is whole has a fingerprint"
            raise TypeError(msg)
        if self._source is not None:
            # Who limits it on its way waits for the route to say how long it may be.
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
        """Get ready for another try: the next one has the body from memory.

        Whoever counts bytes on their way has counted these.
        """
        if self._source is not None:
            self._source.forget()
            self.connection = replace(self.connection, ahead=None)

    def close(self) -> None:
        """Let go of what is kept of the body."""
        if not isinstance(self.content, bytes):
            self.content.close()
