"""What makes two requests the same one: whose they are, and the fingerprint."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from typing import Any

from asgi_durable.errors import DurableError
from asgi_durable.ids import KEY_CHARACTERS, PRINCIPAL_CHARACTERS
from asgi_durable.middleware.asgi import Scope, header_values
from asgi_durable.middleware.body_meaning import BYTES, canonical_encoding, meaning_of
from asgi_durable.middleware.json_members import JsonMembers
from asgi_durable.middleware.media_type import MediaType, parse_media_type
from asgi_durable.middleware.request_target import path_of, query_of
from asgi_durable.request_errors import PolicyFailedError, PrincipalUnavailableError

__all__ = [
    "RequestHash",
    "is_request_of",
    "principal_of",
    "request_fingerprint",
    "request_workflow_id",
]

# Begins the fingerprints that are made now; see `former_fingerprint` for those before.
VERSION = "v2:"


def principal_of(
    scope: Scope,
    configured: Callable[[Scope], str | None] | None,
    session_cookie: str | None = None,
) -> bytes:
    """Return a name for whose request it is, under which its key is looked up.

    Raises:
        PrincipalUnavailableError: The configured function, or the user's identity, failed.
            The request is not served as anybody else's, or as nobody's.
    """
    try:
        if configured is not None:
            principal = configured(scope)
            return b"anonymous" if principal is None else _named(b"principal:", principal)
        user: Any = scope.get("user")
        if getattr(user, "is_authenticated", hasattr(user, "identity")):
            return _named(b"user:", user.identity)
    except Exception as error:
        msg = (
            f"the principal cannot be told ({type(error).__name__}: {error}); give the user an "
            "identity, or configure IdempotencyPolicy(principal=...)"
        )
        raise PrincipalUnavailableError(msg) from error
    credentials = header_values(scope["headers"], b"authorization")
    if credentials:
        return b"authorization:" + _digest(*credentials)
    session = _cookie(scope, session_cookie) if session_cookie is not None else None
    if session:
        return b"session:" + _digest(session)
    if user is not None and not hasattr(user, "is_authenticated"):
        msg = "the user has no identity; configure IdempotencyPolicy(principal=...)"
        raise PrincipalUnavailableError(msg)
    return b"anonymous"


def _cookie(scope: Scope, name: str) -> bytes | None:
    """Return a cookie's value; the first one, as servers take it (RFC 6265, section 5.4)."""
    for line in header_values(scope["headers"], b"cookie"):
        for pair in line.split(b";"):
            key, _, value = pair.strip(b" \t").partition(b"=")
            if key == name.encode("latin-1"):
                return value
    return None


def _named(kind: bytes, name: object) -> bytes:
    if not isinstance(name, str) or not name:
        msg = f"a principal is a string that is not empty, got {name!r}"
        raise TypeError(msg)
    return kind + name.encode()


def request_workflow_id(principal: bytes, key: bytes, endpoint: bytes | None = None) -> str:
    """Return the id of the workflow that a key stands for: a hash, so no client can choose one.

    Its first part says whose it is. The method and the path are not in it but in the
    fingerprint: the same key on another endpoint is a mistake of the client's, and is told so;
    but where each *endpoint* has keys of its own.
    """
    parts = (principal, key) if endpoint is None else (principal, key, endpoint)
    own = _base32(_digest(b"asgi-durable request", *parts), KEY_CHARACTERS)
    return _principal_part(principal) + own


def is_request_of(principal: bytes, workflow_id: str) -> bool:
    """Tell whether a request's workflow is a principal's."""
    return hmac.compare_digest(
        workflow_id[:PRINCIPAL_CHARACTERS].encode(), _principal_part(principal).encode()
    )


def _principal_part(principal: bytes) -> str:
    return _base32(_digest(b"asgi-durable principal", principal), PRINCIPAL_CHARACTERS)


def _base32(digest: bytes, characters: int) -> str:
    """Return the first characters; five bytes make eight of them."""
    needed = digest[: -(-characters // 8) * 5]
    return base64.b32encode(needed).decode("ascii").lower()[:characters]


class RequestHash:
    """Makes the fingerprint of a request whose body comes in pieces, and is compared as it is.

    Args:
        scope: An HTTP scope.
        merges_slashes: See :func:`~asgi_durable.middleware.request_target.path_of`.
    """

    def __init__(self, scope: Scope, *, merges_slashes: bool = False) -> None:
        media_type, encoding = _content_of(scope)
        what = (media_type.text, encoding, BYTES)
        self._hash = _hash_of(*_target_of(scope, merges_slashes=merges_slashes), *what)

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
        merges_slashes: See :func:`~asgi_durable.middleware.request_target.path_of`.

    Raises:
        PolicyFailedError: The application's own way failed.
    """
    if configured is not None and not isinstance(configured, JsonMembers):
        return "own:" + _digest(_own_fingerprint(scope, body, configured)).hex()
    media_type, encoding = _content_of(scope)
    meaning = meaning_of(media_type, encoding, body)
    kind, content = meaning.kind, meaning.content
    if configured is not None and (members := configured.members_of(meaning)) is not None:
        kind, content = b"members", members
    digest = _hash_of(
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


def _digest(*parts: bytes) -> bytes:
    return _hash_of(*parts).digest()


def _hash_of(*parts: bytes) -> hashlib._Hash:
    digest = hashlib.sha256()
    for part in parts:
        # A length prefix keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest
