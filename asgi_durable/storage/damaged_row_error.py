"""The error of a row that no version of the library has written so."""

from __future__ import annotations

from asgi_durable.errors import StorageError

__all__ = ["DamagedRowError", "shown"]

LONGEST_TEXT = 200


class DamagedRowError(StorageError, ValueError):
    """A row cannot be read.

    Args:
        table: Its table's name.
        row_id: Its workflow's or executor's id, whatever that is.
        reason: What is wrong with it.
    """

    def __init__(self, table: str, row_id: object, reason: str) -> None:
        self.row_id = row_id
        super().__init__(f"the row {shown(row_id)} of {table} is damaged: {reason}")


def shown(value: object) -> str:
    """Return a value for a message, not all of a long one."""
    text = repr(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
