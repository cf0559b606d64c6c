"""Paths and queries as they are compared: by their meaning to a router."""

from __future__ import annotations

import re
from urllib.parse import quote

from asgi_durable.middleware.asgi import Scope

__all__ = ["canonical_escapes", "path_of", "query_of"]

_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
# RFC 3986, section 2.3: these mean the same with and without an escape.
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Further characters that need no escape in a path (RFC 3986, section 3.3).
_PLAIN_IN_PATHS = "/:@!$&'()*+,;="
_SLASHES = re.compile(rb"/{2,}")


def path_of(scope: Scope, *, merges_slashes: bool = False) -> bytes:
    """Return a request's path in its canonical spelling.

    Two paths that an app can tell apart have different ones: ``%2F`` stays escaped.

    Args:
        scope: An HTTP scope.
        merges_slashes: True where ``/a``, ``/a/`` and ``//a`` are the same path to the router.
    """
    raw = scope.get("raw_path")
    if raw:
        # Some servers and test clients leave the query in `raw_path`.
        path = canonical_escapes(raw.partition(b"?")[0], _UNRESERVED)
    else:
        text = scope["path"].encode("utf-8", "surrogatepass")
        path = quote(text, safe=_PLAIN_IN_PATHS).encode("ascii")
    return b"/" + _SLASHES.sub(b"/", path.strip(b"/")) if merges_slashes else path


def query_of(scope: Scope) -> bytes:
    """Return a request's query in its canonical spelling; the order of its parts counts."""
    return canonical_escapes(scope.get("query_string", b""), _UNRESERVED)


def canonical_escapes(text: bytes, plain: frozenset[int]) -> bytes:
    """Return a text with the escapes of *plain* bytes resolved, and the others in upper case.

    A text with a ``%`` that begins no escape is returned unchanged, so that no other text can
    become equal to it.
    """
    if b"%" not in text:
        return text

    def spelled(escape: re.Match[bytes]) -> bytes:
        byte = int(escape[0][1:], 16)
        return bytes((byte,)) if byte in plain else escape[0].upper()

    resolved, count = _ESCAPE.subn(spelled, text)
    return resolved if count == text.count(b"%") else text
