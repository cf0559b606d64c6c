"""What makes two requests the same one: the key, its scope, and the fingerprint."""

from __future__ import annotations

import base64
import decimal
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from typing import Any

from asgi_durable.errors import DurableError
from asgi_durable.ids import KEY_CHARACTERS, PRINCIPAL_CHARACTERS
from asgi_durable.middleware.asgi import Scope, header_values
from asgi_durable.request_errors import (
    KeyMalformedError,
    PolicyFailedError,
    PrincipalUnavailableError,
)

__all__ = [
    "RequestHash",
    "canonical_json",
    "idempotency_key",
    "is_request_of",
    "principal_of",
    "request_fingerprint",
    "request_workflow_id",
]

MAX_KEY_BYTES = 255
MAX_CANONICAL_BYTES = 64 * 1024
# RFC 9651, section 3.3.3, with parameters, which mean nothing here.
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"(?: *;[\x20-\x7e]*)?')
_ESCAPED = re.compile(rb'\\(["\\])')
_BARE = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")


def idempotency_key(scope: Scope, header_name: bytes) -> bytes | None:
    """Return the request's key, ``None`` if it has none. Quoted and bare are the same key.

    Args:
        scope: An HTTP scope.
        header_name: In lower case.

    Raises:
        KeyMalformedError: The key is empty, too long, repeated or not legal.

    Source:
        draft-ietf-httpapi-idempotency-key-header-07, section 2.1; bare keys are what most
        clients send.
    """
    lines = header_values(scope["headers"], header_name)
    if not lines:
        return None
    if len(lines) > 1:
        msg = "the header occurs more than once"
        raise KeyMalformedError(msg)
    value = lines[0].strip(b" \t")
    if value.startswith(b'"'):
        quoted = _QUOTED.fullmatch(value)
        key = _ESCAPED.sub(rb"\1", quoted[1]) if quoted else b""
    else:
        key = value if _BARE.fullmatch(value) else b""
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        msg = (
            f"a key is 1 to {MAX_KEY_BYTES} visible ASCII characters, bare without "
            'quotes, commas, semicolons and backslashes, or a quoted string as in "8e03"'
        )
        raise KeyMalformedError(msg)
    return key


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

    Attributes:
        is_plain_json: True if the body is a JSON text, as it is.
    """

    def __init__(self, scope: Scope) -> None:
        media_type = b",".join(header_values(scope["headers"], b"content-type"))
        encoding = b",".join(header_values(scope["headers"], b"content-encoding"))
        # The raw path: no two paths that the app can tell apart share a fingerprint.
        path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogatepass")
        query = scope.get("query_string", b"")
        method = scope["method"].encode("ascii")
        self.is_plain_json = not encoding and _is_json(media_type)
        # The body comes last, and its end is the end: its length need not be known before.
        self._hash = _hash_of(method, path, query, media_type, encoding)

    def add(self, piece: bytes) -> None:
        """Add the next piece of the body."""
        self._hash.update(piece)

    def fingerprint(self) -> str:
        """Return the fingerprint, of the body so far."""
        return "v1:" + self._hash.hexdigest()


def request_fingerprint(
    scope: Scope, body: bytes, configured: Callable[[Scope, bytes], str] | None = None
) -> str:
    """Return a digest of what must not change between retries of a request.

    Most headers are left out: clients and proxies change them between retries. The digest
    names its version, so that another way of making it never takes a retry for a misuse.

    A JSON body is read and written again: the order of an object's members and white space
    make no other request of it.

    Args:
        scope: An HTTP scope.
        body: The whole request body.
        configured: The application's own way, from the same.

    Raises:
        PolicyFailedError: That failed.
    """
    if configured is not None:
        return "own:" + _digest(_own_fingerprint(scope, body, configured)).hex()
    hashing = RequestHash(scope)
    hashing.add(canonical_json(body) if hashing.is_plain_json else body)
    return hashing.fingerprint()


def _own_fingerprint(scope: Scope, body: bytes, configured: Callable[[Scope, bytes], str]) -> bytes:
    try:
        return configured(scope, body).encode()
    except DurableError:
        raise
    except Exception as error:
        raise PolicyFailedError.of(error, "fingerprint") from error


def _is_json(media_type: bytes) -> bool:
    name = media_type.partition(b";")[0].strip().lower()
    return name == b"application/json" or name.endswith(b"+json")


def canonical_json(body: bytes) -> bytes:
    """Return a JSON text in one of its spellings; as it is if it is long, or no plain JSON."""
    if len(body) > MAX_CANONICAL_BYTES:
        return body
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        return _ENCODER.encode(_DECODER.decode(text)).encode("ascii")
    except (ValueError, RecursionError):
        return body


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Which of two equal names counts depends on who reads it.
        msg = "a name occurs twice"
        raise ValueError(msg)
    return members


def _exact_float(text: str) -> float:
    number = float(text)
    if decimal.Decimal(text) != decimal.Decimal(repr(number)):
        # An app that reads decimals sees the difference.
        msg = f"{text} is no float"
        raise ValueError(msg)
    return number


# Made once: `json.loads` and `json.dumps` make one for each text that is read or written so.
_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_float=_exact_float)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _digest(*parts: bytes) -> bytes:
    return _hash_of(*parts).digest()


def _hash_of(*parts: bytes) -> hashlib._Hash:
    digest = hashlib.sha256()
    for part in parts:
        # A length prefix keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest
