"""Headers of responses: those that are stored, and those that the library adds."""

from __future__ import annotations

import json
from collections.abc import Iterable

from asgi_durable.middleware.asgi import HOP_BY_HOP, Headers, Message, Send

__all__ = [
    "CONTENT_LENGTH",
    "IGNORED",
    "REPLAYED_HEADER",
    "add_headers",
    "adding_headers",
    "decode_headers",
    "encode_headers",
    "without_length",
]

CONTENT_LENGTH = b"content-length"
REPLAYED_HEADER = b"idempotent-replayed"
# The header of a response to a request that was served without protection.
IGNORED = (b"idempotency-status", b"ignored")

# Headers of the connection, of the moment or of one request's trace; and those that are added.
_NOT_STORED_WITH_COOKIES = HOP_BY_HOP | {
    REPLAYED_HEADER,
    b"date",
    b"server",
    b"server-timing",
    b"traceparent",
    b"tracestate",
    b"x-request-id",
}
_NOT_STORED = _NOT_STORED_WITH_COOKIES | {b"set-cookie"}
# They say how many requests the client may still send.
_RATE_LIMIT_PREFIXES = (b"ratelimit", b"x-ratelimit-", b"x-rate-limit-")


def add_headers(headers: Iterable[tuple[bytes, bytes]], added: Headers) -> Headers:
    """Return a response's headers with those of the library, which replace the app's."""
    replaced = {REPLAYED_HEADER, *dict(added)}
    return [(name, value) for name, value in headers if name.lower() not in replaced] + added


def adding_headers(send: Send, added: Headers) -> Send:
    """Return a ``send`` that adds the library's headers to the response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": add_headers(message.get("headers", ()), added)}
        await send(message)

    return send_with_headers


def without_length(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return a response's headers without ``Content-Length``."""
    return [(name, value) for name, value in headers if name.lower() != CONTENT_LENGTH]


def encode_headers(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    keeps_cookies: bool = False,
    entries: Iterable[tuple[str, str]] = (),
) -> bytes:
    """Return the headers that are stored with a response, in order, as JSON.

    Args:
        headers: All headers of the response.
        keeps_cookies: True to store ``Set-Cookie``.
        entries: Further names and values, which are stored behind them.
    """
    lower = [(name.lower(), value) for name, value in headers]
    excluded = _NOT_STORED_WITH_COOKIES if keeps_cookies else _NOT_STORED
    if b"connection" in dict(lower):
        # RFC 9110, section 7.6.1: its values are names of further headers of the connection.
        excluded |= {
            option.strip().lower()
            for name, value in lower
            if name == b"connection"
            for option in value.split(b",")
        }
    stored = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in lower
        if name not in excluded and not name.startswith(_RATE_LIMIT_PREFIXES)
    ]
    return json.dumps([*stored, *entries]).encode("ascii")


def decode_headers(data: bytes) -> Headers:
    """Return the headers that :func:`encode_headers` stored.

    Raises:
        ValueError: The data is damaged.
    """
    try:
        return [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(data)
        ]
    except (TypeError, AttributeError) as error:
        msg = f"these are no headers: {error}"
        raise ValueError(msg) from error
