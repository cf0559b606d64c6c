"""SQL fragments, and rows as SQLite's driver takes and returns them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlalchemy import Table

from asgi_durable.storage import tables
from asgi_durable.storage.rows import (
    RowDecoder,
    chunk_values,
    columns,
    response_values,
    step_values,
    workflow_encoder,
)

__all__ = [
    "INSERT_RESPONSE",
    "SELECT_CHUNK",
    "SELECT_RESPONSE",
    "SELECT_STEP",
    "SELECT_WORKFLOW",
    "chunk_from",
    "chunk_values",
    "columns",
    "insert",
    "json_list",
    "response_from",
    "response_values",
    "step_from",
    "step_values",
    "text_or_bytes",
    "workflow_from",
    "workflow_values",
]


def insert(table: Table) -> str:
    """Return an INSERT of a whole row."""
    marks = ", ".join("?" * len(table.columns))
    return f"INSERT INTO {table.name} ({', '.join(columns(table))}) VALUES ({marks})"


def _select(table: Table) -> str:
    return f"SELECT {', '.join(columns(table))} FROM {table.name}"


INSERT_RESPONSE = insert(tables.responses).replace("INSERT", "INSERT OR REPLACE", 1)
SELECT_WORKFLOW = _select(tables.workflows)
SELECT_STEP = _select(tables.steps)
SELECT_RESPONSE = _select(tables.responses)
SELECT_CHUNK = _select(tables.pieces)

_decoder = RowDecoder(checks_types=True)
workflow_from, step_from = _decoder.workflow, _decoder.step
response_from, chunk_from = _decoder.response, _decoder.chunk
# The driver looks for a conversion of a bool, and takes an int as it is.
workflow_values = workflow_encoder(int)


def text_or_bytes(data: bytes) -> str | bytes:
    """Return a text of the database's, or its bytes if they are not UTF-8.

    Such a row is then damaged alone. The driver's own factory raises for all rows of a query.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def json_list(values: Iterable[str]) -> str:
    """Return values for ``json_each(?)``: a list of any length in one parameter."""
    return json.dumps(list(values))
