"""The pieces that streamed answers are made of."""

from __future__ import annotations

PIECES = 12
MAX_RESPONSE_BODY = 64 * 1024
PIECE_BYTES = 16 * 1024
# One more than what may be kept.
PIECES_BEYOND_LIMIT = MAX_RESPONSE_BODY // PIECE_BYTES + 1
MEDIA_TYPES = {"events": "text/event-stream", "download": "application/octet-stream"}


def piece(kind: str, number: int) -> bytes:
    """Return a piece of an answer: an event, or a part of something long."""
    if kind == "events":
        return b"id: %d\ndata: event\n\n" % number
    return bytes([number]) * PIECE_BYTES


def whole(kind: str, pieces: int = PIECES) -> bytes:
    """Return all pieces, or the first ones, as a client gets them."""
    return b"".join(piece(kind, number) for number in range(pieces))
