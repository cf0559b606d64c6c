"""SQL text and records from the table definitions, for the driver."""

from __future__ import annotations

import json
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from sqlalchemy import Table

from asgi_durable.storage import tables
from asgi_durable.storage.records import (
    PieceRecord,
    ResponseRecord,
    StepRecord,
    WorkflowRecord,
    WorkflowState,
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
    "workflow_from",
    "workflow_values",
]


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


def workflow_from(row: tuple[Any, ...]) -> WorkflowRecord:
    """Return the record of a row of ``SELECT_WORKFLOW``."""
    fields = dict(zip(_WORKFLOW_COLUMNS, row, strict=True))
    fields["state"], fields["awaited"] = WorkflowState(fields["state"]), bool(fields["awaited"])
    return WorkflowRecord(**fields)


def step_from(row: tuple[Any, ...]) -> StepRecord:
    """Return the record of a row of ``SELECT_STEP``."""
    return StepRecord(**dict(zip(columns(tables.steps), row, strict=True)))


def response_from(row: tuple[Any, ...]) -> ResponseRecord:
    """Return the record of a row of ``SELECT_RESPONSE``."""
    return ResponseRecord(**dict(zip(columns(tables.responses), row, strict=True)))


def piece_from(row: tuple[Any, ...]) -> PieceRecord:
    """Return the record of a row of ``SELECT_PIECE``."""
    return PieceRecord(**dict(zip(columns(tables.pieces), row, strict=True)))


def json_list(values: Iterable[str]) -> str:
    """Return values for ``json_each(?)``: a list of any length in one parameter."""
    return json.dumps(list(values))
