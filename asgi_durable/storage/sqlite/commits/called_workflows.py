"""Writes that concern a workflow and those that it called: cancelling it, and retrying it."""

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

__all__ = ["cancel_workflow", "drop_trailing_failures"]

_WORKFLOWS, _STEPS = tables.workflows.name, tables.steps.name
# The workflow and, at any depth, those that it called and that have no outcome but CANCELLED.
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
# Steps and awaited children of a workflow, last first, as (number, child's id or NULL, failed). The
# failure of a step that runs at most once also has an output, and so counts as not failed.
_LOG = (
    f"SELECT step_number, NULL, error IS NOT NULL AND output IS NULL FROM {_STEPS} "
    "WHERE workflow_id = :id "
    "UNION ALL "
    f"SELECT parent_step, workflow_id, state = 'ERROR' FROM {_WORKFLOWS} "
    "WHERE parent_id = :id "
    "AND (state = 'ERROR' AND awaited OR state IN ('SUCCESS', 'CANCELLED')) "
    "ORDER BY 1 DESC"
)
_DELETE_STEP = f"DELETE FROM {_STEPS} WHERE workflow_id = ? AND step_number = ?"
_REOPEN_WORKFLOW = (
    f"UPDATE {_WORKFLOWS} SET state = 'PENDING', error = NULL, executor_id = ? "
    "WHERE workflow_id = ?"
)


def cancel_workflow(cursor: sqlite3.Cursor, write: CancelWorkflow) -> Outcome:
    """Apply the write in the open transaction."""
    row = cursor.execute(f"{SELECT_WORKFLOW} WHERE workflow_id = ?", (write.workflow_id,))
    found = row.fetchone()
    if found is None:
        return Outcome(OutcomeKind.CONFLICT)
    existing = workflow_from(found)
    if existing.is_final and existing.state is not WorkflowState.CANCELLED:
        return Outcome(OutcomeKind.CONFLICT, existing=existing)
    # Also if it is cancelled already: it may have called others since.
    cursor.execute(_CANCEL, {"id": write.workflow_id, "now": write.cancelled_at_us})
    if existing.is_request and not existing.is_final and write.response is not None:
        cursor.execute(INSERT_RESPONSE, response_values(write.response))
    cancelled = cursor.execute(_CANCELLED, {"id": write.workflow_id}).fetchall()
    return Outcome(OutcomeKind.DONE, cancelled=tuple(cancelled))


def drop_trailing_failures(
    cursor: sqlite3.Cursor, workflow_id: str, executor_id: str | None
) -> None:
    """Drop the failures at the end of a workflow's log, so that its retry runs them again.

    Failures are dropped behind the last entry that stays: a success, the failure of a step that
    runs at most once, or a cancelled child. The function caught the failures before that entry.
    The record of a failed step is deleted. A child that was called and ended in ERROR becomes
    PENDING again, belongs to the executor, and loses its own trailing failures. A child that was
    only started keeps its outcome.
    """
    for number, child_id, failed in cursor.execute(_LOG, {"id": workflow_id}).fetchall():
        if not failed:
            return
        if child_id is None:
            cursor.execute(_DELETE_STEP, (workflow_id, number))
        else:
            cursor.execute(_REOPEN_WORKFLOW, (executor_id, child_id))
            drop_trailing_failures(cursor, child_id, executor_id)
