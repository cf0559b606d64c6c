"""The fingerprint: what must not change between retries of a request."""

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

# Begins the fingerprints that are made now; see `former_fingerprint` for those before.
VERSION = "v2:"


class RequestHash:
    """Makes the fingerprint of a request whose body comes in pieces, and is compared as it is.

    Args:
        scope: An HTTP scope.
        merges_slashes: See :func:`~asgi_durable.middleware.fingerprints.request_target.path_of`.
    """

    def __init__(self, scope: Scope, *, merges_slashes: bool = False) -> None:
        media_type, encoding = _content_of(scope)
        what = (media_type.text, encoding, BYTES)
        self._hash = hash_of(*_target_of(scope, merges_slashes=merges_slashes), *what)

    def add(self, piece: bytes) -> None:
        """Add the next piece of the body."""
        # The body comes last, and its end is the end: its length need not be known before.
        self._hash.update(piece)

    def fingerprint(self) -> str:
        """Return the fingerprint, of the body so far."""
        return VERSION + self._hash.hexdigest()


def request_fingerprint(
    scope: Scope,
    body: bytes,
    configured: Callable[[Scope, bytes], str] | JsonMembers | None = None,
    *,
    merges_slashes: bool = False,
) -> str:
    """Return a digest of what must not change between retries of a request.

    Most headers are left out: clients and proxies change them between retries. The digest
    names its version, so that another way of making it never takes a retry for a misuse.

    Path, query, media type and body are compared by what they mean.

    Args:
        scope: An HTTP scope.
        body: The whole request body.
        configured: The application's own way, from the same; or what counts of a JSON body.
        merges_slashes: See :func:`~asgi_durable.middleware.fingerprints.request_target.path_of`.

    Raises:
        PolicyFailedError: The application's own way failed.
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
