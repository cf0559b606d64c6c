"""Whether the pieces of a recorded stream fit together; rows may have been damaged by hand."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from asgi_durable.codec.sealing import PIECE, Sealer
from asgi_durable.errors import DecodeError, EncryptionKeyMissingError
from asgi_durable.storage.damaged_row_error import DamagedRowError
from asgi_durable.storage.protocol import StepLog
from asgi_durable.storage.records import CUT_ALL, CUT_FOR_GOOD, PieceRecord

__all__ = ["StreamDamagedError", "check_pieces", "checked_start", "fits", "read_pieces"]

logger = logging.getLogger(__name__)


class StreamDamagedError(Exception):
    """What is recorded of a stream is not what was recorded."""


async def read_pieces(
    storage: StepLog, sealer: Sealer, workflow_id: str, after: int
) -> list[PieceRecord]:
    """Return the pieces of a stream behind an offset, a page of them, opened.

    Raises:
        StreamDamagedError: One of them cannot be read.
        EncryptionKeyMissingError: One of them is encrypted with a key that is not here.
        StorageError: The storage failed.
    """
    try:
        return [_opened(piece, sealer) for piece in await storage.read_pieces(workflow_id, after)]
    except DamagedRowError as error:
        raise StreamDamagedError(str(error)) from error


def _opened(piece: PieceRecord, sealer: Sealer) -> PieceRecord:
    try:
        data = sealer.open_bytes(piece.data, PIECE)
    except EncryptionKeyMissingError:
        raise
    except DecodeError as error:
        where = f"which ends at {piece.end_offset} in the stream of request {piece.workflow_id}"
        logger.error("A chunk cannot be read, %s: %s", where, error)
        # Its place is taken; without its data it fits nowhere, as whoever reads it finds.
        return replace(piece, cut_to=None, data=b"")
    return piece if data is piece.data else replace(piece, data=data)


def check_pieces(pieces: Iterable[PieceRecord], after: int, end: int | None) -> None:
    """Check pieces that were read at once.

    Args:
        pieces: In order.
        after: The offset behind which they were read; it may be within the first one.
        end: Where the stream ends, if it is complete.

    Raises:
        StreamDamagedError: One is missing in between, or cannot be of this stream.
    """
    position, is_first = after, True
    for piece in pieces:
        if not fits(piece, position, is_first=is_first):
            msg = f"the piece that ends at {piece.end_offset!r} does not follow offset {position}"
            raise StreamDamagedError(msg)
        position, is_first = piece.end_offset, False
    if end is not None and position > max(after, end):
        msg = f"it ends at {end}, and there is a piece that ends at {position}"
        raise StreamDamagedError(msg)


def checked_start(pieces: list[PieceRecord]) -> PieceRecord | None:
    """Return a stream's start, of its first pieces; ``None`` if there is nothing of it.

    Raises:
        StreamDamagedError: They begin with something else.
    """
    if not pieces or pieces[0].cut_to == CUT_FOR_GOOD:
        return None
    if pieces[0].cut_to != CUT_ALL or not _is_readable(pieces[0]):
        msg = "its start is missing"
        raise StreamDamagedError(msg)
    return pieces[0]


def fits(piece: PieceRecord, position: int, *, is_first: bool = False) -> bool:
    """Tell whether a piece can be the next one behind an offset.

    A cut leaves a gap behind what it cuts back to, and is itself recorded at the gap's end.

    Args:
        piece: The next one that there is.
        position: The offset.
        is_first: True if the offset was asked for: it may be in the middle of a piece, and
            behind what was cut.
    """
    if not _is_readable(piece):
        return False
    begin = piece.cut_to if piece.cut_to is not None else piece.end_offset - len(piece.data)
    return begin <= position if is_first else begin == position


def _is_readable(piece: PieceRecord) -> bool:
    # SQLite takes a value of any type into any column.
    return (
        isinstance(piece.end_offset, int)
        and isinstance(piece.data, bytes)
        and (piece.cut_to is None or isinstance(piece.cut_to, int))
    )
