"""What makes two requests the same one: the key and the fingerprint."""

from __future__ import annotations

import decimal
import json
import re
from collections.abc import Callable
from typing import Any

from asgi_durable.errors import DurableError
from asgi_durable.middleware.asgi import Scope, header_values
from asgi_durable.request_errors import (
    KeyMalformedError,
    PolicyFailedError,
)
from asgi_durable.request_ids import digest_of, hash_of

__all__ = [
    "RequestHash",
    "canonical_json",
    "idempotency_key",
    "request_fingerprint",
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
        self._hash = hash_of(method, path, query, media_type, encoding)

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
        return "own:" + digest_of(_own_fingerprint(scope, body, configured)).hex()
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
