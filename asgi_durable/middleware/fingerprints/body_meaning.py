"""What a request body means, so that a retry that builds it again is the same request.

Each way to read a body takes time and memory in proportion to its length, up to a limit; what
is longer, or cannot be read without a doubt, is compared byte for byte.
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

# A packed body may be a thousand times as long.
MAX_UNPACKED_BYTES = 4 * 1024 * 1024
MAX_FORM_BYTES = 1024 * 1024
# To read a longer body takes so long that other requests should not wait for it.
MAX_BYTES_ON_LOOP = 32 * 1024
# Longer ones are no boundaries (RFC 2046, section 5.1.1).
_MAX_BOUNDARY = 70
# The kinds of meaning; none is another one's.
BYTES, PACKED, JSON, FORM, PARTS = b"bytes", b"packed", b"json", b"form", b"parts"
# Bytes of a form that mean the same with and without an escape; the others divide it.
_PLAIN_IN_FORMS = frozenset(range(256)) - frozenset(b"&=+%")
# How zlib is to read each encoding; clients send "deflate" with and without its header.
_WINDOWS = {b"gzip": (31,), b"deflate": (15, -15)}


@fast_dataclass()
class Meaning:
    """What is compared of a body.

    Attributes:
        kind: How it was read.
        media_type: As far as it counts besides.
        content: What was read, in one spelling.
        document: What a JSON text says; ``None`` of any other body.
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
    """Return a ``Content-Encoding`` in one spelling; empty if the body is as it is."""
    name = header.strip().lower()
    return {b"identity": b"", b"x-gzip": b"gzip"}.get(name, name)


def meaning_of(media_type: MediaType, encoding: bytes, body: bytes) -> Meaning:
    """Return the meaning of a whole body.

    Args:
        media_type: Of the body.
        encoding: See :func:`canonical_encoding`.
        body: As it was sent.
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
    """Return the content of a body, ``None`` if that is too long or cannot be read."""
    if not encoding:
        return body
    for window in _WINDOWS.get(encoding, ()):
        unpacking = zlib.decompressobj(window)
        try:
            plain = unpacking.decompress(body, MAX_UNPACKED_BYTES + 1)
        except zlib.error:
            continue
        # Several packed bodies in a row are not read: each may be as short as 20 bytes.
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
    """Return the parts of a multipart body, each with its headers and behind its length.

    ``None`` where readers may differ about what the parts are.
    """
    mark = b"--" + boundary
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        return None
    # What else may be a boundary, and what is around the parts, is read in different ways.
    before, *parts = (b"\r\n" + body).split(b"\r\n" + mark)
    if before or not parts or len(parts) != body.count(mark):
        return None
    if parts.pop() not in (b"--", b"--\r\n"):
        return None
    if not all(part.startswith(b"\r\n") for part in parts):
        return None
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
