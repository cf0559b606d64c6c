"""The fingerprint: a digest of the parts of a request that a retry must not change."""

from __future__ import annotations

from collections.abc import Callable

from asgi_durable.engine.requests.request_ids import digest_of, hash_of
from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import Scope, header_values
from asgi_durable.middleware.fingerprints.body_meaning import BYTES, canonical_encoding, meaning_of
from asgi_durable.middleware.fingerprints.json_members import JsonMembers
from asgi_durable.middleware.fingerprints.media_type import MediaType, parse_media_type
from asgi_durable.middleware.fingerprints.request_target import path_of, query_of
from asgi_durable.request_errors import PolicyFailedError

__all__ = [
    "RequestHash",
    "request_fingerprint",
]

# Prefix of the current version's fingerprints; see `former_fingerprint` for earlier ones.
VERSION = "v2:"


class RequestHash:
    """Computes the fingerprint of a request whose body arrives in chunks, byte for byte.

    Args:
        scope: An HTTP scope.
        merges_slashes: See :func:`~asgi_durable.middleware.fingerprints.request_target.path_of`.
    """

    def __init__(self, scope: Scope, *, merges_slashes: bool = False) -> None:
        media_type, encoding = _content_of(scope)
        content = (media_type.text, encoding, BYTES)
        self._hash = hash_of(*_target_of(scope, merges_slashes=merges_slashes), *content)

    def add(self, chunk: bytes) -> None:
        """Add the next chunk of the body."""
        # The body is hashed last, so its length need not be known before.
        self._hash.update(chunk)

    def fingerprint(self) -> str:
        """Return the fingerprint of the body so far."""
        return VERSION + self._hash.hexdigest()


def request_fingerprint(
    scope: Scope,
    body: bytes,
    configured: Callable[[Scope, bytes], str] | JsonMembers | None = None,
    *,
    merges_slashes: bool = False,
) -> str:
    """Return a digest of the parts of a request that a retry must not change.

    Path, query, media type and body are compared by their meaning. Most headers do not count:
    clients and proxies change them between retries. The digest begins with its version, so that
    a retry of a request from an earlier version of the library is not taken for another request.

    Args:
        scope: An HTTP scope.
        body: The whole request body.
        configured: The policy's function of scope and body; or the members of a JSON body that
            count.
        merges_slashes: See :func:`~asgi_durable.middleware.fingerprints.request_target.path_of`.

    Raises:
        PolicyFailedError: The policy's function failed.
    """
    if configured is not None and not isinstance(configured, JsonMembers):
        return "own:" + digest_of(_own_fingerprint(scope, body, configured)).hex()
    media_type, encoding = _content_of(scope)
    meaning = meaning_of(media_type, encoding, body)
    kind, content = meaning.kind, meaning.content
    if configured is not None and (members := configured.members_of(meaning)) is not None:
        kind, content = b"members", members
    digest = hash_of(
        *_target_of(scope, merges_slashes=merges_slashes), meaning.media_type, encoding, kind
    )
    digest.update(content)
    return VERSION + digest.hexdigest()


def _target_of(scope: Scope, *, merges_slashes: bool) -> tuple[bytes, bytes, bytes]:
    method = scope["method"].encode("ascii")
    return method, path_of(scope, merges_slashes=merges_slashes), query_of(scope)


def _content_of(scope: Scope) -> tuple[MediaType, bytes]:
    headers = scope["headers"]
    media_type = parse_media_type(b",".join(header_values(headers, b"content-type")))
    return media_type, canonical_encoding(b",".join(header_values(headers, b"content-encoding")))


def _own_fingerprint(scope: Scope, body: bytes, configured: Callable[[Scope, bytes], str]) -> bytes:
    try:
        return configured(scope, body).encode()
    except DurableError:
        raise
    except Exception as error:
        raise PolicyFailedError.of(error, "fingerprint") from error
