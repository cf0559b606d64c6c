"""Fingerprints of an earlier version, for retries of requests that it has claimed.

No new fingerprint is stored in this form. The code must not change any more, as it has to
recognise these requests.
"""

from __future__ import annotations

import decimal
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from asgi_durable.middleware.asgi import Scope, header_values
from asgi_durable.middleware.fingerprints.json_members import JsonPointer

__all__ = ["FormerHash", "former_fingerprint", "is_former"]

_VERSION = "v1:"
_MAX_CANONICAL_BYTES = 64 * 1024


def is_former(stored: str | None) -> bool:
    """Tell whether a stored fingerprint was made by an earlier version."""
    return stored is not None and stored.startswith(_VERSION)


class FormerHash:
    """Computes the former fingerprint of a body that arrives in chunks; see ``RequestHash``."""

    def __init__(self, scope: Scope) -> None:
        headers = scope["headers"]
        media_type = b",".join(header_values(headers, b"content-type"))
        encoding = b",".join(header_values(headers, b"content-encoding"))
        path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogatepass")
        name = media_type.partition(b";")[0].strip().lower()
        is_json = name == b"application/json" or name.endswith(b"+json")
        self.is_plain_json = is_json and not encoding
        self._hash = hashlib.sha256()
        method, query = scope["method"].encode("ascii"), scope.get("query_string", b"")
        for part in (method, path, query, media_type, encoding):
            self._hash.update(len(part).to_bytes(8, "big"))
            self._hash.update(part)

    def add(self, chunk: bytes) -> None:
        """Add the next chunk of the body."""
        self._hash.update(chunk)

    def fingerprint(self) -> str:
        """Return the fingerprint of the body so far."""
        return _VERSION + self._hash.hexdigest()


def former_fingerprint(scope: Scope, body: bytes, pointers: Sequence[JsonPointer] | None) -> str:
    """Return the former fingerprint of a request with a whole body.

    Args:
        scope: An HTTP scope.
        body: The whole body.
        pointers: JSON pointers to the members of a JSON body that count; ``None`` if all of the
            body counts.
    """
    hashing = FormerHash(scope)
    if not hashing.is_plain_json:
        hashing.add(body)
    elif pointers is None:
        hashing.add(_canonical_json(body))
    else:
        hashing.add(_members_at(body, pointers))
    return hashing.fingerprint()


def _members_at(body: bytes, pointers: Sequence[JsonPointer]) -> bytes:
    try:
        document = json.loads(_canonical_json(body))
    except (ValueError, RecursionError):
        return body
    found: dict[str, Any] = {}
    for pointer in pointers:
        try:
            found[pointer.text] = pointer.find(document)
        except LookupError:
            continue
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode("ascii")


def _canonical_json(body: bytes) -> bytes:
    if len(body) > _MAX_CANONICAL_BYTES:
        return body
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        document = json.loads(text, object_pairs_hook=_unique_members, parse_float=_exact_float)
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")
    except (ValueError, ArithmeticError, RecursionError):
        return body


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        msg = "a name occurs twice"
        raise ValueError(msg)
    return members


def _exact_float(text: str) -> float:
    number = float(text)
    if decimal.Decimal(text) != decimal.Decimal(repr(number)):
        msg = f"{text} is no float"
        raise ValueError(msg)
    return number
