"""What a retry of a failed request does to its log: the trailing failures are run again."""

from __future__ import annotations

import sqlite3

from asgi_durable.storage import tables

__all__ = ["drop_trailing_failures"]

# Steps and awaited children of a workflow, as (number, child's id or NULL, failed). The failure
# of a step that runs at most once has an output beside it.
_LOG = (
    f"SELECT step_number, NULL, error IS NOT NULL AND output IS NULL FROM {tables.steps.name} "
    "WHERE workflow_id = :id "
    "UNION ALL "
    f"SELECT parent_step, workflow_id, state = 'ERROR' FROM {tables.workflows.name} "
    "WHERE parent_id = :id "
    "AND (state = 'ERROR' AND awaited OR state IN ('SUCCESS', 'CANCELLED')) "
    "ORDER BY 1 DESC"
)
_DELETE_STEP = f"DELETE FROM {tables.steps.name} WHERE workflow_id = ? AND step_number = ?"
_REOPEN_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET state = 'PENDING', error = NULL, executor_id = ? "
    "WHERE workflow_id = ?"
)


def drop_trailing_failures(
    cursor: sqlite3.Cursor, workflow_id: str, executor_id: str | None
) -> None:
    """Drop the failed records that nothing follows that stays.

    A success stays, and so does what a step that runs at most once has left.
    A step's record is deleted. A child that was called and ended in ERROR is PENDING again,
    the executor's, and loses its own trailing failures. A child that was only started keeps
    its fate, and so does one that was cancelled. An error that was caught and followed by such
    a record, or by a success, stays recorded.
    """
    for number, child_id, failed in cursor.execute(_LOG, {"id": workflow_id}).fetchall():
        if not failed:
            return
        if child_id is None:
            cursor.execute(_DELETE_STEP, (workflow_id, number))
        else:
            cursor.execute(_REOPEN_WORKFLOW, (executor_id, child_id))
            drop_trailing_failures(cursor, child_id, executor_id)
