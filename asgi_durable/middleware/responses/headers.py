"""Headers of answers: which are kept, and which are the library's own."""

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
# What only concerns the connection, the moment or one client's session; and what the library adds.
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
# On the answer to a request that was served without any protection.
IGNORED = (b"idempotency-status", b"ignored")


def add_headers(headers: Iterable[tuple[bytes, bytes]], marks: Headers) -> Headers:
    """Return an answer's headers with those of the library's, which an app may pass on."""
    ours = {REPLAYED_HEADER, *(name for name, _ in marks)}
    return [*((name, value) for name, value in headers if name.lower() not in ours), *marks]


def marking(send: Send, marks: Headers) -> Send:
    """Return a ``send`` that puts the library's headers on the answer."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": add_headers(message.get("headers", ()), marks)}
        await send(message)

    return send_marked


def without_length(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return an answer's headers without the length of its body."""
    return [(name, value) for name, value in headers if name.lower() != CONTENT_LENGTH]


def encode_headers(headers: Iterable[tuple[bytes, bytes]], *, keeps_cookies: bool = False) -> bytes:
    """Return the headers that are kept with an answer, in order, as JSON."""
    lower = [(name.lower(), value) for name, value in headers]
    # What else only concerns the connection (RFC 9110, section 7.6.1).
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
    """Return what :func:`encode_headers` was given, without what is not kept.

    Raises:
        ValueError: It is no such thing.
    """
    try:
        return [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(data)
        ]
    except (TypeError, AttributeError) as error:
        msg = f"these are no headers: {error}"
        raise ValueError(msg) from error
