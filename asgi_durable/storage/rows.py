"""Rows of the four tables of the step log as records, and records as rows, for every adapter.

A row is a driver's result for a query that names all columns of a table, in the table's order.
More columns may follow those of a workflow.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from asgi_durable.storage import tables
from asgi_durable.storage.records import (
    ChunkRecord,
    DamagedRowError,
    ResponseRecord,
    StepRecord,
    WorkflowRecord,
    WorkflowState,
    shown,
)

__all__ = [
    "REQUEST_IDS",
    "ROLLOUT_US",
    "RowDecoder",
    "chunk_values",
    "columns",
    "new_secret",
    "response_values",
    "step_values",
    "workflow_encoder",
]

Row = Any

REQUEST_IDS = "request ids"
# Processes of an earlier version may still run beside a migrated database, and make request ids
# without the secret. Requests that were claimed within this time are looked up by such an id too.
ROLLOUT_US = 24 * 3600 * 1_000_000

_PYTHON_TYPES: dict[type[object], tuple[type, ...]] = {
    sa.Text: (str,),
    sa.LargeBinary: (bytes,),
    sa.Integer: (int,),
    sa.BigInteger: (int,),
    sa.Boolean: (bool, int),
}


def columns(table: sa.Table) -> tuple[str, ...]:
    """Return the names of a table's columns."""
    return tuple(column.name for column in table.columns)


_WORKFLOW = columns(tables.workflows)
_STATE, _AWAITED = _WORKFLOW.index("state"), _WORKFLOW.index("awaited")


class RowDecoder:
    """Makes records of rows.

    Args:
        checks_types: True for a database that stores any value in any column, as SQLite does.
            Each method then raises ``DamagedRowError`` for a value of another type than its
            column's.
    """

    def __init__(self, *, checks_types: bool) -> None:
        check = _TypeCheck if checks_types else _no_check
        self._check_workflow = check(tables.workflows)
        self._check_step = check(tables.steps)
        self._check_response = check(tables.responses)
        self._check_chunk = check(tables.pieces)

    def workflow(self, row: Row) -> WorkflowRecord:
        """Return the record of a row of ``tables.workflows``.

        Raises:
            DamagedRowError: There is no state of this name.
        """
        if self._check_workflow is not None:
            self._check_workflow(row)
        fields = dict(zip(_WORKFLOW, row, strict=False))
        fields["state"] = _state_of(fields)
        fields["awaited"] = bool(fields["awaited"])
        return WorkflowRecord(**fields)

    def step(self, row: Row) -> StepRecord:
        """Return the record of a row of ``tables.steps``."""
        if self._check_step is not None:
            self._check_step(row)
        # Spelled out, as a replay calls this for each step: making a dict takes twice as long.
        workflow_id, step_number, name, digest, output, error, finished_at_us = row
        return StepRecord(
            workflow_id=workflow_id,
            step_number=step_number,
            name=name,
            digest=digest,
            output=output,
            error=error,
            finished_at_us=finished_at_us,
        )

    def response(self, row: Row) -> ResponseRecord:
        """Return the record of a row of ``tables.responses``."""
        if self._check_response is not None:
            self._check_response(row)
        workflow_id, status, headers, body, expires_at_us, forgotten_at_us, stream_end = row
        return ResponseRecord(
            workflow_id=workflow_id,
            status_code=status,
            headers=headers,
            body=body,
            expires_at_us=expires_at_us,
            forgotten_at_us=forgotten_at_us,
            stream_end=stream_end,
        )

    def chunk(self, row: Row) -> ChunkRecord:
        """Return the record of a row of ``tables.pieces``."""
        if self._check_chunk is not None:
            self._check_chunk(row)
        workflow_id, end_offset, cut_to, data = row
        return ChunkRecord(workflow_id=workflow_id, end_offset=end_offset, cut_to=cut_to, data=data)


def workflow_encoder(boolean: type[int]) -> Callable[[WorkflowRecord], tuple[Any, ...]]:
    """Return a function that makes a workflow's row.

    Args:
        boolean: The type in which the driver takes a truth value, ``bool`` or ``int``.
    """

    def workflow_values(workflow: WorkflowRecord) -> tuple[Any, ...]:
        values = list(_workflow_fields(workflow))
        # A plain string: drivers look for a conversion of a value of any subclass.
        values[_STATE] = workflow.state.value
        values[_AWAITED] = boolean(workflow.awaited)
        return tuple(values)

    return workflow_values


_workflow_fields = attrgetter(*_WORKFLOW)
step_values = attrgetter(*columns(tables.steps))
response_values = attrgetter(*columns(tables.responses))
chunk_values = attrgetter(*columns(tables.pieces))


def new_secret(*, added_later: bool) -> tuple[str, bytes, int, bool]:
    """Return a row of ``tables.secrets`` with a new secret for the ids of requests.

    Args:
        added_later: True for a database that may already have requests.
    """
    return REQUEST_IDS, secrets.token_bytes(32), time.time_ns() // 1000, added_later


class _TypeCheck:
    """Raises ``DamagedRowError`` for a row with a value of another type than its column's."""

    def __init__(self, table: sa.Table) -> None:
        self._table = table
        # Types of the values of sound rows: one entry for each set of columns that are NULL.
        self._sound: set[tuple[type, ...]] = set()

    def __call__(self, row: tuple[object, ...]) -> None:
        types = tuple(map(type, row))
        if types not in self._sound:
            self._check(row, types)
            self._sound.add(types)

    def _check(self, row: tuple[object, ...], types: tuple[type, ...]) -> None:
        for column, value, kind in zip(self._table.columns, row, types, strict=True):
            is_missing = value is None and column.nullable
            if not is_missing and kind not in _PYTHON_TYPES[type(column.type)]:
                # The message never has the value: it may be part of a request or a response.
                reason = f"{column.name} is of the type {kind.__name__}"
                raise DamagedRowError(self._table.name, row[0], reason)


def _no_check(_table: sa.Table) -> None:
    return None


def _state_of(fields: dict[str, Any]) -> WorkflowState:
    try:
        return WorkflowState(fields["state"])
    except ValueError:
        reason = f"state is {shown(fields['state'])}"
        raise DamagedRowError(tables.workflows.name, fields["workflow_id"], reason) from None
