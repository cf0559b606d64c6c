"""Recording the pieces of streams in a SQLite file."""

from __future__ import annotations

import sqlite3

from asgi_durable.storage import tables
from asgi_durable.storage.sqlite.rows import SELECT_CHUNK, chunk_from, chunk_values, columns
from asgi_durable.storage.writes import DONE, FENCED, Outcome, OutcomeKind, RecordChunk

__all__ = ["DELETE_PIECES", "record_chunk"]

DELETE_PIECES = f"DELETE FROM {tables.pieces.name} WHERE workflow_id = ?"
_INSERT = (
    f"INSERT INTO {tables.pieces.name} ({', '.join(columns(tables.pieces))}) "
    f"SELECT ?, ?, ?, ? FROM {tables.workflows.name} "
    "WHERE workflow_id = ? AND executor_id = ? AND state = 'PENDING' ON CONFLICT DO NOTHING"
)
_CUT = f"{DELETE_PIECES} AND end_offset > ? AND end_offset < ?"
_FIND = f"{SELECT_CHUNK} WHERE workflow_id = ? AND end_offset = ?"


def record_chunk(cursor: sqlite3.Cursor, write: RecordChunk) -> Outcome:
    """Insert a piece, and delete what it cuts."""
    piece = write.piece
    owned = (piece.workflow_id, write.executor_id)
    if cursor.execute(_INSERT, (*chunk_values(piece), *owned)).rowcount == 1:
        if write.cuts:
            cursor.execute(_CUT, (piece.workflow_id, piece.cut_to, piece.end_offset))
        return DONE
    found = cursor.execute(_FIND, (piece.workflow_id, piece.end_offset)).fetchone()
    if found is None:
        return FENCED
    # The same piece is this very write, whose answer got lost.
    return DONE if chunk_from(found) == piece else Outcome(OutcomeKind.CONFLICT)
