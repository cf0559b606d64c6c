"""SQL text and records from the table definitions, for the driver."""

from __future__ import annotations

import json
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from sqlalchemy import Table

from asgi_durable.storage import tables
from asgi_durable.storage.damaged_rows import RowCheck, state_of
from asgi_durable.storage.records import (
    ChunkRecord,
    ResponseRecord,
    StepRecord,
    WorkflowRecord,
)

__all__ = [
    "INSERT_RESPONSE",
    "SELECT_PIECE",
    "SELECT_RESPONSE",
    "SELECT_STEP",
    "SELECT_WORKFLOW",
    "columns",
    "insert",
    "json_list",
    "piece_from",
    "piece_values",
    "response_from",
    "response_values",
    "step_from",
    "step_values",
    "text_or_bytes",
    "workflow_from",
    "workflow_values",
]


def text_or_bytes(data: bytes) -> str | bytes:
    """Return a text of the database's; its bytes if it is none, so that it fails alone.

    The driver raises for all rows of a statement otherwise.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def columns(table: Table) -> tuple[str, ...]:
    """Return the names of a table's columns."""
    return tuple(column.name for column in table.columns)


def insert(table: Table) -> str:
    """Return an INSERT of a whole row."""
    marks = ", ".join("?" * len(table.columns))
    return f"INSERT INTO {table.name} ({', '.join(columns(table))}) VALUES ({marks})"


INSERT_RESPONSE = insert(tables.responses).replace("INSERT", "INSERT OR REPLACE", 1)


def _select(table: Table) -> str:
    return f"SELECT {', '.join(columns(table))} FROM {table.name}"


SELECT_WORKFLOW = _select(tables.workflows)
SELECT_STEP = _select(tables.steps)
SELECT_RESPONSE = _select(tables.responses)
SELECT_PIECE = _select(tables.pieces)

_WORKFLOW_COLUMNS = columns(tables.workflows)
_STATE = _WORKFLOW_COLUMNS.index("state")
_AWAITED = _WORKFLOW_COLUMNS.index("awaited")
_workflow_fields = attrgetter(*_WORKFLOW_COLUMNS)
step_values = attrgetter(*columns(tables.steps))
response_values = attrgetter(*columns(tables.responses))
piece_values = attrgetter(*columns(tables.pieces))


def workflow_values(workflow: WorkflowRecord) -> tuple[Any, ...]:
    """Return a row for the driver."""
    # Plain strings and integers: the driver looks for an adapter for any subclass of them.
    values = list(_workflow_fields(workflow))
    values[_STATE] = workflow.state.value
    values[_AWAITED] = int(workflow.awaited)
    return tuple(values)


# SQLite takes any value in any column. Each raises DamagedRowError for what is not sound.
_check_workflow, _check_step = RowCheck(tables.workflows), RowCheck(tables.steps)
_check_response, _check_piece = RowCheck(tables.responses), RowCheck(tables.pieces)


def workflow_from(row: tuple[Any, ...]) -> WorkflowRecord:
    """Return the record of a row of ``SELECT_WORKFLOW``."""
    _check_workflow(row)
    fields = dict(zip(_WORKFLOW_COLUMNS, row, strict=True))
    fields["state"] = state_of(fields["state"], tables.workflows.name, row[0])
    fields["awaited"] = bool(fields["awaited"])
    return WorkflowRecord(**fields)


def step_from(row: tuple[Any, ...]) -> StepRecord:
    """Return the record of a row of ``SELECT_STEP``."""
    _check_step(row)
    return StepRecord(**dict(zip(columns(tables.steps), row, strict=True)))


def response_from(row: tuple[Any, ...]) -> ResponseRecord:
    """Return the record of a row of ``SELECT_RESPONSE``."""
    _check_response(row)
    return ResponseRecord(**dict(zip(columns(tables.responses), row, strict=True)))


def piece_from(row: tuple[Any, ...]) -> ChunkRecord:
    """Return the record of a row of ``SELECT_PIECE``."""
    _check_piece(row)
    return ChunkRecord(**dict(zip(columns(tables.pieces), row, strict=True)))


def json_list(values: Iterable[str]) -> str:
    """Return values for ``json_each(?)``: a list of any length in one parameter."""
    return json.dumps(list(values))
