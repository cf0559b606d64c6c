"""The statements that write workflows and what is recorded of them, and their parameters."""

from __future__ import annotations

from functools import cache
from typing import Any

from asgi_durable.storage import tables
from asgi_durable.storage.sqlite.rows import (
    SELECT_RESPONSE,
    SELECT_STEP,
    SELECT_WORKFLOW,
    columns,
    insert,
    step_values,
)
from asgi_durable.storage.writes import (
    MAX_TOLD_BYTES,
    CompleteStep,
    FinishWorkflow,
    RecordStep,
)

__all__ = [
    "ACQUIT_WORKFLOW",
    "COMPLETE_STEP",
    "FIND_RESPONSE",
    "FIND_STEP",
    "FIND_WORKFLOW",
    "FINISH_WORKFLOW",
    "FORGET_REQUEST",
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

# Both ends of a claim: the row must be pending and the executor's own.
_OWNED = "workflow_id = ? AND executor_id = ? AND state = 'PENDING'"

INSERT_WORKFLOW = f"{insert(tables.workflows)} ON CONFLICT DO NOTHING"
INSERT_STEP = (
    f"INSERT INTO {tables.steps.name} ({', '.join(columns(tables.steps))}) "
    f"SELECT ?, ?, ?, ?, ?, ?, ? FROM {tables.workflows.name} WHERE {_OWNED} "
    "ON CONFLICT DO NOTHING"
)
# As long as it has none: the first outcome stands.
COMPLETE_STEP = (
    f"UPDATE {tables.steps.name} SET output = ?, error = ?, finished_at_us = ? "
    "WHERE workflow_id = ? AND step_number = ? AND output IS NULL AND error IS NULL "
    f"AND EXISTS (SELECT 1 FROM {tables.workflows.name} WHERE {_OWNED})"
)
# How many steps a statement inserts; the largest number that is left.
STEPS_AT_ONCE = (64, 8)
FINISH_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET state = ?, output = ?, error = ?, updated_at_us = ? "
    f"WHERE {_OWNED}"
)
FIND_WORKFLOW = f"{SELECT_WORKFLOW} WHERE workflow_id = ?"
FIND_RESPONSE = (
    f"{SELECT_RESPONSE} WHERE workflow_id = ? AND ifnull(length(body), 0) <= {MAX_TOLD_BYTES}"
)
FIND_STEP = f"{SELECT_STEP} WHERE workflow_id = ? AND step_number = ?"
TAKE_REQUEST = (
    f"UPDATE {tables.workflows.name} SET executor_id = ?, attempts = attempts + 1, "
    "request_id = ?, updated_at_us = ?, retry_at_us = NULL, fingerprint = ? WHERE workflow_id = ?"
)
SET_FINGERPRINT = (
    f"UPDATE {tables.workflows.name} SET fingerprint = ? WHERE {_OWNED} AND fingerprint = ?"
)
# Of one that is over as well: an outcome may be dropped, and the workflow go on.
SET_LAST_SPAN = (
    f"UPDATE {tables.workflows.name} SET last_span = ? WHERE workflow_id = ? AND executor_id = ?"
)
RESUME_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET executor_id = ?, attempts = attempts + 1, "
    "updated_at_us = ? WHERE workflow_id = ?"
)
# Whatever its log will have then is more than nothing: see `SQLiteExecutors.take_over`.
ACQUIT_WORKFLOW = f"UPDATE {tables.workflows.name} SET crashed_at_entry = -1 WHERE {_OWNED}"
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


def step_parameters(write: RecordStep) -> tuple[Any, ...]:
    """Return the parameters of ``INSERT_STEP``."""
    return (*step_values(write.step), write.step.workflow_id, write.executor_id)


@cache
def insert_steps(count: int) -> str:
    """Return the statement for so many steps, each with its executor behind it."""
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
    """Return a step's part of the parameters of :func:`insert_steps`."""
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
