"""SQL statements that write workflows, steps and chunks, and their parameters."""

from __future__ import annotations

from functools import cache
from typing import Any

from asgi_durable.storage import tables
from asgi_durable.storage.sqlite.rows import (
    SELECT_CHUNK,
    SELECT_RESPONSE,
    SELECT_STEP,
    SELECT_WORKFLOW,
    columns,
    insert,
    step_values,
)
from asgi_durable.storage.writes import (
    MAX_INLINE_BYTES,
    CompleteStep,
    FinishWorkflow,
    RecordStep,
)

__all__ = [
    "CLEAR_CRASH_COUNT",
    "COMPLETE_STEP",
    "CUT_CHUNKS",
    "DELETE_CHUNKS",
    "FIND_CHUNK",
    "FIND_RESPONSE",
    "FIND_STEP",
    "FIND_WORKFLOW",
    "FINISH_WORKFLOW",
    "FORGET_REQUEST",
    "INSERT_CHUNK",
    "INSERT_STEP",
    "INSERT_WORKFLOW",
    "RELEASE_WORKFLOW",
    "RESUME_WORKFLOW",
    "SET_FINGERPRINT",
    "SET_LAST_SPAN",
    "STEPS_AT_ONCE",
    "TAKE_REQUEST",
    "completion_parameters",
    "finish_parameters",
    "insert_steps",
    "owned_step_values",
    "step_parameters",
]

# The workflow is PENDING and owned by the executor.
_OWNED = "workflow_id = ? AND executor_id = ? AND state = 'PENDING'"

INSERT_WORKFLOW = f"{insert(tables.workflows)} ON CONFLICT DO NOTHING"
INSERT_STEP = (
    f"INSERT INTO {tables.steps.name} ({', '.join(columns(tables.steps))}) "
    f"SELECT ?, ?, ?, ?, ?, ?, ? FROM {tables.workflows.name} WHERE {_OWNED} "
    "ON CONFLICT DO NOTHING"
)
# Only if it has no outcome: the first one is final.
COMPLETE_STEP = (
    f"UPDATE {tables.steps.name} SET output = ?, error = ?, finished_at_us = ? "
    "WHERE workflow_id = ? AND step_number = ? AND output IS NULL AND error IS NULL "
    f"AND EXISTS (SELECT 1 FROM {tables.workflows.name} WHERE {_OWNED})"
)
# The numbers of steps that one statement inserts; the largest that is not too large is used.
STEPS_AT_ONCE = (64, 8)
FINISH_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET state = ?, output = ?, error = ?, updated_at_us = ? "
    f"WHERE {_OWNED}"
)
FIND_WORKFLOW = f"{SELECT_WORKFLOW} WHERE workflow_id = ?"
FIND_RESPONSE = (
    f"{SELECT_RESPONSE} WHERE workflow_id = ? AND ifnull(length(body), 0) <= {MAX_INLINE_BYTES}"
)
FIND_STEP = f"{SELECT_STEP} WHERE workflow_id = ? AND step_number = ?"
TAKE_REQUEST = (
    f"UPDATE {tables.workflows.name} SET executor_id = ?, attempts = attempts + 1, "
    "request_id = ?, updated_at_us = ?, retry_at_us = NULL, fingerprint = ? WHERE workflow_id = ?"
)
SET_FINGERPRINT = (
    f"UPDATE {tables.workflows.name} SET fingerprint = ? WHERE {_OWNED} AND fingerprint = ?"
)
# Also for a finished workflow: a retry may drop its outcome and continue it.
SET_LAST_SPAN = (
    f"UPDATE {tables.workflows.name} SET last_span = ? WHERE workflow_id = ? AND executor_id = ?"
)
RESUME_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET executor_id = ?, attempts = attempts + 1, "
    "updated_at_us = ? WHERE workflow_id = ?"
)
# After the next crash its log has more than -1 entries, and so that crash counts as the first: see
# `SQLiteExecutors.take_over`.
CLEAR_CRASH_COUNT = f"UPDATE {tables.workflows.name} SET crashed_at_entry = -1 WHERE {_OWNED}"
RELEASE_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET executor_id = NULL, retry_at_us = ? WHERE {_OWNED}"
)
FORGET_REQUEST = (
    f"DELETE FROM {tables.workflows.name} WHERE {_OWNED} "
    f"AND NOT EXISTS (SELECT 1 FROM {tables.steps.name} AS step"
    f" WHERE step.workflow_id = {tables.workflows.name}.workflow_id) "
    f"AND NOT EXISTS (SELECT 1 FROM {tables.workflows.name} AS child"
    f" WHERE child.parent_id = {tables.workflows.name}.workflow_id)"
)
INSERT_CHUNK = (
    f"INSERT INTO {tables.pieces.name} ({', '.join(columns(tables.pieces))}) "
    f"SELECT ?, ?, ?, ? FROM {tables.workflows.name} WHERE {_OWNED} ON CONFLICT DO NOTHING"
)
FIND_CHUNK = f"{SELECT_CHUNK} WHERE workflow_id = ? AND end_offset = ?"
DELETE_CHUNKS = f"DELETE FROM {tables.pieces.name} WHERE workflow_id = ?"
CUT_CHUNKS = f"{DELETE_CHUNKS} AND end_offset > ? AND end_offset < ?"


def step_parameters(write: RecordStep) -> tuple[Any, ...]:
    """Return the parameters of ``INSERT_STEP``."""
    return (*step_values(write.step), write.step.workflow_id, write.executor_id)


@cache
def insert_steps(count: int) -> str:
    """Return the statement that inserts *count* steps; see :func:`owned_step_values`."""
    names = columns(tables.steps)
    row = f"({', '.join('?' * (len(names) + 1))})"
    # SQLite calls the columns of VALUES column1 and so on.
    values = ", ".join(f"new.column{number}" for number in range(1, len(names) + 1))
    return (
        f"INSERT INTO {tables.steps.name} ({', '.join(names)}) SELECT {values} "
        f"FROM (VALUES {', '.join([row] * count)}) AS new "
        f"CROSS JOIN {tables.workflows.name} AS owner WHERE owner.workflow_id = new.column1 "
        f"AND owner.executor_id = new.column{len(names) + 1} AND owner.state = 'PENDING' "
        "ON CONFLICT DO NOTHING"
    )


def owned_step_values(write: RecordStep) -> tuple[Any, ...]:
    """Return the parameters of one step for :func:`insert_steps`: its row and its executor."""
    return (*step_values(write.step), write.executor_id)


def completion_parameters(write: CompleteStep) -> tuple[Any, ...]:
    """Return the parameters of ``COMPLETE_STEP``."""
    step = write.step
    outcome = (step.output, step.error, step.finished_at_us)
    return (*outcome, step.workflow_id, step.step_number, step.workflow_id, write.executor_id)


def finish_parameters(write: FinishWorkflow) -> tuple[Any, ...]:
    """Return the parameters of ``FINISH_WORKFLOW``."""
    return (
        write.state.value,
        write.output,
        write.error,
        write.finished_at_us,
        write.workflow_id,
        write.executor_id,
    )
