"""The chunks of streamed responses."""

from __future__ import annotations

PIECES = 12
MAX_RESPONSE_BODY = 64 * 1024
PIECE_BYTES = 16 * 1024
# One byte more than may be stored.
PIECES_BEYOND_LIMIT = MAX_RESPONSE_BODY // PIECE_BYTES + 1
MEDIA_TYPES = {"events": "text/event-stream", "download": "application/octet-stream"}


def piece(kind: str, number: int) -> bytes:
    """Return a chunk of a response: an event, or a part of a long body."""
    if kind == "events":
        return b"id: %d\ndata: event\n\n" % number
    return bytes([number]) * PIECE_BYTES


def whole(kind: str, pieces: int = PIECES) -> bytes:
    """Return all chunks, or the first ones, as a client gets them."""
    return b"".join(piece(kind, number) for number in range(pieces))
