"""Paths and queries as they are compared: by what a router sees of them."""

from __future__ import annotations

import re
from urllib.parse import quote

from asgi_durable.middleware.asgi import Scope

__all__ = ["canonical_escapes", "path_of", "query_of"]

_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
# RFC 3986, section 2.3: whether they are escaped makes no difference to anybody.
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# What a path has besides without an escape (RFC 3986, section 3.3).
_PLAIN_IN_PATHS = "/:@!$&'()*+,;="
_SLASHES = re.compile(rb"/{2,}")


def path_of(scope: Scope, *, merges_slashes: bool = False) -> bytes:
    """Return a request's path in one spelling.

    No two paths that an app can tell apart have the same one: ``%2F`` stays what it is.

    Args:
        scope: An HTTP scope.
        merges_slashes: True where ``/a``, ``/a/`` and ``//a`` are one path to the router.
    """
    raw = scope.get("raw_path")
    if raw:
        # Some servers and test clients leave the query where it was.
        path = canonical_escapes(raw.partition(b"?")[0], _UNRESERVED)
    else:
        text = scope["path"].encode("utf-8", "surrogatepass")
        path = quote(text, safe=_PLAIN_IN_PATHS).encode("ascii")
    return b"/" + _SLASHES.sub(b"/", path.strip(b"/")) if merges_slashes else path


def query_of(scope: Scope) -> bytes:
    """Return a request's query in one spelling; the order of its parts counts."""
    return canonical_escapes(scope.get("query_string", b""), _UNRESERVED)


def canonical_escapes(text: bytes, plain: frozenset[int]) -> bytes:
    """Return a text in which the escapes of *plain* bytes are resolved, the others upper case.

    One with a ``%`` that begins no escape is returned as it is: nothing else can become equal
    to it then.
    """
    if b"%" not in text:
        return text

    def spelled(escape: re.Match[bytes]) -> bytes:
        byte = int(escape[0][1:], 16)
        return bytes((byte,)) if byte in plain else escape[0].upper()

    resolved, count = _ESCAPE.subn(spelled, text)
    return resolved if count == text.count(b"%") else text
