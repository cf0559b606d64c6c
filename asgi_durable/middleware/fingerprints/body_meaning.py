"""Bodies as they are compared: by their meaning, as a retry may serialize the same data anew.

Each way to read a body takes time and memory in proportion to its length, up to a limit. A body
that is longer, or that readers may understand differently, is compared byte for byte.
"""

from __future__ import annotations

import zlib
from typing import Any

from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.middleware.fingerprints.canonical_json import read_json, write_json
from asgi_durable.middleware.fingerprints.media_type import MediaType
from asgi_durable.middleware.fingerprints.request_target import canonical_escapes

__all__ = [
    "BYTES",
    "MAX_BYTES_ON_LOOP",
    "MAX_UNPACKED_BYTES",
    "Meaning",
    "canonical_encoding",
    "meaning_of",
    "unpacked",
]

# A compressed body may expand to a thousand times its length.
MAX_UNPACKED_BYTES = 4 * 1024 * 1024
MAX_FORM_BYTES = 1024 * 1024
# Longer bodies are read in a thread, as other requests should not wait for them.
MAX_BYTES_ON_LOOP = 32 * 1024
# The longest legal boundary (RFC 2046, section 5.1.1).
_MAX_BOUNDARY = 70
# The kinds of meaning; bodies of two kinds are never equal.
BYTES, PACKED, JSON, FORM, PARTS = b"bytes", b"packed", b"json", b"form", b"parts"
# Bytes of a form that mean the same with and without an escape; the others are delimiters.
_PLAIN_IN_FORMS = frozenset(range(256)) - frozenset(b"&=+%")
# zlib's window sizes for each encoding; clients send "deflate" with and without its header.
_WINDOWS = {b"gzip": (31,), b"deflate": (15, -15)}


@fast_dataclass()
class Meaning:
    """A body as it is compared.

    Attributes:
        kind: The way in which it was read.
        media_type: The part of its media type that is compared as well.
        content: The body in its canonical spelling.
        document: The parsed document of a JSON text; ``None`` for any other body.
    """

    kind: bytes
    media_type: bytes
    content: bytes
    document: Any = None

    @property
    def is_json(self) -> bool:
        """True if the body is a JSON text that all applications read alike."""
        return self.kind == JSON


def canonical_encoding(header: bytes) -> bytes:
    """Return a ``Content-Encoding`` in its canonical spelling; empty for a plain body."""
    name = header.strip().lower()
    return {b"identity": b"", b"x-gzip": b"gzip"}.get(name, name)


def meaning_of(media_type: MediaType, encoding: bytes, body: bytes) -> Meaning:
    """Return the meaning of a whole body.

    Args:
        media_type: The body's.
        encoding: The body's, as :func:`canonical_encoding` returns it.
        body: The body as it was sent.
    """
    plain = unpacked(body, encoding)
    if plain is None:
        return Meaning(PACKED, media_type.text, body)
    meaning = None
    if media_type.is_json:
        meaning = _of_json(media_type, plain)
    elif media_type.is_form:
        meaning = _of_form(media_type, plain)
    elif (boundary := media_type.boundary) is not None:
        parts = _parts(plain, boundary)
        if parts is not None:
            meaning = Meaning(PARTS, media_type.without(b"boundary"), parts)
    return meaning or Meaning(BYTES, media_type.text, plain)


def unpacked(body: bytes, encoding: bytes) -> bytes | None:
    """Return a body decompressed; ``None`` if the result is too long or cannot be read."""
    if not encoding:
        return body
    for window in _WINDOWS.get(encoding, ()):
        unpacking = zlib.decompressobj(window)
        try:
            plain = unpacking.decompress(body, MAX_UNPACKED_BYTES + 1)
        except zlib.error:
            continue
        # Several compressed bodies in a row are not read: each may be as short as 20 bytes.
        is_whole = unpacking.eof and not unpacking.unused_data
        return plain if is_whole and len(plain) <= MAX_UNPACKED_BYTES else None
    return None


def _of_json(media_type: MediaType, body: bytes) -> Meaning | None:
    try:
        document = read_json(body)
        return Meaning(JSON, media_type.text, write_json(document), document)
    except ValueError:
        return None


def _of_form(media_type: MediaType, body: bytes) -> Meaning | None:
    if len(body) > MAX_FORM_BYTES:
        return None
    spelled = canonical_escapes(body.replace(b"+", b"%20"), _PLAIN_IN_FORMS)
    return Meaning(FORM, media_type.text, spelled)


def _parts(body: bytes, boundary: bytes) -> bytes | None:
    """Return the parts of a multipart body, each one with its headers and preceded by its length.

    ``None`` where readers may disagree about the parts.
    """
    mark = b"--" + boundary
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        return None
    # Readers disagree about other marks in the body, and about text before the first part.
    before, *parts = (b"\r\n" + body).split(b"\r\n" + mark)
    if before or not parts or len(parts) != body.count(mark):
        return None
    if parts.pop() not in (b"--", b"--\r\n"):
        return None
    if not all(part.startswith(b"\r\n") for part in parts):
        return None
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
