"""Headers of responses: those that are stored, and the library's own."""

from __future__ import annotations

import json
from collections.abc import Iterable

from asgi_durable.middleware.asgi import HOP_BY_HOP, Headers, Message, Send

__all__ = [
    "CONTENT_LENGTH",
    "IGNORED",
    "REPLAYED_HEADER",
    "add_headers",
    "decode_headers",
    "encode_headers",
    "marking",
    "without_length",
]

CONTENT_LENGTH = b"content-length"

REPLAYED_HEADER = b"idempotent-replayed"
# Headers about the connection, the moment or one client's session, and those that the library adds.
_NOT_KEPT = HOP_BY_HOP | {
    REPLAYED_HEADER,
    b"date",
    b"server",
    b"server-timing",
    b"traceparent",
    b"tracestate",
    b"x-request-id",
}
# How much the sender may send still.
_OF_RATE_LIMITS = (b"ratelimit", b"x-ratelimit-", b"x-rate-limit-")
_COOKIE = b"set-cookie"
# Marks the response to a request that was served without any protection.
IGNORED = (b"idempotency-status", b"ignored")


def add_headers(headers: Iterable[tuple[bytes, bytes]], marks: Headers) -> Headers:
    """Return a response's headers with the library's in place of those of the same names."""
    ours = {REPLAYED_HEADER, *(name for name, _ in marks)}
    return [*((name, value) for name, value in headers if name.lower() not in ours), *marks]


def marking(send: Send, marks: Headers) -> Send:
    """Return a ``send`` that adds the library's headers to the response."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": add_headers(message.get("headers", ()), marks)}
        await send(message)

    return send_marked


def without_length(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return a response's headers without the length of its body."""
    return [(name, value) for name, value in headers if name.lower() != CONTENT_LENGTH]


def encode_headers(headers: Iterable[tuple[bytes, bytes]], *, keeps_cookies: bool = False) -> bytes:
    """Return the headers that are stored with a response, in order, as JSON."""
    lower = [(name.lower(), value) for name, value in headers]
    # The other headers that only concern the connection (RFC 9110, section 7.6.1).
    named = {
        option.strip().lower()
        for name, value in lower
        if name == b"connection"
        for option in value.split(b",")
    }
    if not keeps_cookies:
        named.add(_COOKIE)
    kept = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in lower
        if name not in _NOT_KEPT and name not in named and not name.startswith(_OF_RATE_LIMITS)
    ]
    return json.dumps(kept).encode("ascii")


def decode_headers(data: bytes) -> Headers:
    """Return the headers that :func:`encode_headers` encoded.

    Raises:
        ValueError: The text is not of its form.
    """
    try:
        return [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(data)
        ]
    except (TypeError, AttributeError) as error:
        msg = f"these are no headers: {error}"
        raise ValueError(msg) from error
