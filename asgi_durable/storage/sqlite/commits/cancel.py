"""Cancelling a workflow in a SQLite file, and those that it has called."""

from __future__ import annotations

import sqlite3

from asgi_durable.storage import tables
from asgi_durable.storage.records import WorkflowState
from asgi_durable.storage.sqlite.rows import (
    INSERT_RESPONSE,
    SELECT_WORKFLOW,
    response_values,
    workflow_from,
)
from asgi_durable.storage.writes import CancelWorkflow, Outcome, OutcomeKind

__all__ = ["cancel_workflow"]

_WORKFLOWS = tables.workflows.name
# The workflow, and at any depth those that it called and that have no other outcome.
_CALLED = (
    "WITH RECURSIVE called(workflow_id) AS (VALUES (:id) UNION ALL "
    f"SELECT child.workflow_id FROM called CROSS JOIN {_WORKFLOWS} AS child "
    "ON child.parent_id = called.workflow_id "
    "WHERE child.awaited AND child.state IN ('PENDING', 'CANCELLED')) "
)
_AMONG_CALLED = "WHERE workflow_id IN (SELECT workflow_id FROM called)"
_CANCEL = (
    f"{_CALLED} UPDATE {_WORKFLOWS} SET state = 'CANCELLED', updated_at_us = :now "
    f"{_AMONG_CALLED} AND state = 'PENDING'"
)
_CANCELLED = (
    f"{_CALLED} SELECT workflow_id, executor_id FROM {_WORKFLOWS} "
    f"{_AMONG_CALLED} AND state = 'CANCELLED'"
)


def cancel_workflow(cursor: sqlite3.Cursor, write: CancelWorkflow) -> Outcome:
    """Apply the write, in the transaction under way."""
    row = cursor.execute(f"{SELECT_WORKFLOW} WHERE workflow_id = ?", (write.workflow_id,))
    found = row.fetchone()
    if found is None:
        return Outcome(OutcomeKind.CONFLICT)
    existing = workflow_from(found)
    if existing.is_final and existing.state is not WorkflowState.CANCELLED:
        return Outcome(OutcomeKind.CONFLICT, existing=existing)
    # Again, where it is cancelled: it may have called others meanwhile.
    cursor.execute(_CANCEL, {"id": write.workflow_id, "now": write.cancelled_at_us})
    if existing.is_request and not existing.is_final and write.response is not None:
        cursor.execute(INSERT_RESPONSE, response_values(write.response))
    cancelled = cursor.execute(_CANCELLED, {"id": write.workflow_id}).fetchall()
    return Outcome(OutcomeKind.DONE, cancelled=tuple(cancelled))
