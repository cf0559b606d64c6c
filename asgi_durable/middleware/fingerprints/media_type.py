"""Media types as they are compared: by their meaning, not by their spelling."""

from __future__ import annotations

import re
from functools import lru_cache

from asgi_durable.fast_dataclass import fast_dataclass

__all__ = ["MediaType", "parse_media_type"]

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# RFC 9110, section 8.3.1.
_ESSENCE = re.compile(rb"[ \t]*(" + _TOKEN + rb"/" + _TOKEN + rb")[ \t]*")
_PARAMETER = re.compile(
    rb";[ \t]*(?:(" + _TOKEN + rb")=(?:(" + _TOKEN + rb')|"((?:[^"\\]|\\.)*)"))?[ \t]*', re.DOTALL
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_FORM = b"application/x-www-form-urlencoded"
_UTF_8 = frozenset({b"utf-8", b"utf8"})


@fast_dataclass()
class MediaType:
    """A ``Content-Type``.

    Attributes:
        essence: Type and subtype in lower case; empty if the header cannot be parsed.
        parameters: Pairs of name and value, sorted, the names in lower case; without a charset
            that is the type's only one.
        text: The canonical spelling; the header as it was sent if it cannot be parsed.
    """

    essence: bytes
    parameters: tuple[tuple[bytes, bytes], ...]
    text: bytes

    @property
    def is_json(self) -> bool:
        """True for JSON and the types based on it, which end in ``+json``."""
        return _is_json(self.essence)

    @property
    def is_form(self) -> bool:
        """True for ``application/x-www-form-urlencoded``."""
        return self.essence == _FORM

    @property
    def boundary(self) -> bytes | None:
        """The separator between the parts of a multipart body; ``None`` for other types."""
        if not self.essence.startswith(b"multipart/"):
            return None
        return dict(self.parameters).get(b"boundary")

    def without(self, name: bytes) -> bytes:
        """Return the canonical spelling without a parameter."""
        return _text(self.essence, [pair for pair in self.parameters if pair[0] != name])


# Clients send few different types, but each multipart body has a boundary of its own, so the
# cache is bounded.
@lru_cache(maxsize=64)
def parse_media_type(header: bytes) -> MediaType:
    """Return the parsed ``Content-Type``."""
    found = _ESSENCE.match(header)
    parameters = _parameters(header, found.end()) if found is not None else None
    if found is None or parameters is None:
        return MediaType(essence=b"", parameters=(), text=header)
    essence = found[1].lower()
    if _is_json(essence) or essence == _FORM:
        # Both are UTF-8 with and without the parameter (RFC 8259, section 8.1; WHATWG URL, 5.1).
        is_default = {(b"charset", name) for name in _UTF_8}
        parameters = [pair for pair in parameters if pair not in is_default]
    return MediaType(essence, tuple(parameters), _text(essence, parameters))


def _is_json(essence: bytes) -> bool:
    return essence == b"application/json" or essence.endswith(b"+json")


def _parameters(header: bytes, position: int) -> list[tuple[bytes, bytes]] | None:
    """Return the parameters sorted by name; ``None`` if they cannot be parsed."""
    parameters: dict[bytes, bytes] = {}
    while position < len(header):
        found = _PARAMETER.match(header, position)
        if found is None:
            return None
        position = found.end()
        if found[1] is None:
            continue
        name = found[1].lower()
        if name in parameters:
            # Which one counts depends on the reader.
            return None
        value = found[2] if found[2] is not None else _ESCAPED.sub(rb"\1", found[3])
        parameters[name] = value.lower() if name == b"charset" else value
    return sorted(parameters.items())


def _text(essence: bytes, parameters: list[tuple[bytes, bytes]]) -> bytes:
    quoted = [
        name + b'="' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        for name, value in parameters
    ]
    return b";".join([essence, *quoted])
