"""SQL that ties a transaction of the application to the step log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from asgi_durable.storage import tables
from asgi_durable.storage.postgres.errors import sqlstate_of
from asgi_durable.storage.postgres.rows import (
    OWNED,
    PostgresNames,
    columns,
    response_values,
    type_of,
)
from asgi_durable.storage.transaction_port import (
    RequestSlot,
    SlotBusyError,
    SlotTakenError,
    StepSlot,
)
from asgi_durable.storage.writes import FinishWorkflow

__all__ = [
    "RequestStatements",
    "StepStatements",
    "lock_timeout_of",
    "request_taken",
    "response_parameters",
    "step_taken",
    "waiting_for_claim",
]

# Limits the time between a transaction's record and its COMMIT, which follows at once.
LONGEST_PAUSE = "15s"
LOCK_NOT_AVAILABLE = "55P03"


class StepStatements:
    """SQL for a transaction that is a step of a workflow.

    Attributes:
        check: Selects whether a place in the step log is free. Parameters: the executor, the
            workflow, the step's number.
        record: Inserts the step's row, if its place is still free. Parameters: the executor, and
            the row.
    """

    def __init__(self, names: PostgresNames) -> None:
        self.check = (
            f"SELECT EXISTS (SELECT 1 FROM {names.workflows} AS w "
            f"JOIN {names.executors} AS e ON e.executor_id = w.executor_id "
            f"WHERE w.workflow_id = $2::text AND {OWNED} AND e.state = 'ALIVE') "
            f"AND NOT EXISTS (SELECT 1 FROM {names.steps} AS s "
            "WHERE s.workflow_id = $2::text AND s.step_number = $3::int4)"
        )
        # Invariant: the fence is locked by the last statement before the COMMIT, so that a
        # takeover never waits for the application. If the process stops between the two, the
        # server ends the transaction after the pause. The workflow's row is locked as well,
        # because an older snapshot may still show it as owned by this executor.
        self.record = (
            f"WITH executor AS MATERIALIZED ({names.fence('$1::text')}), pause AS MATERIALIZED ("
            f"SELECT set_config('idle_in_transaction_session_timeout', '{LONGEST_PAUSE}', true)) "
            f"INSERT INTO {names.steps} ({', '.join(columns(tables.steps))}) "
            "SELECT $2::text, $3::int4, $4::text, $5::bytea, $6::bytea, $7::bytea, $8::int8 "
            f"FROM {names.workflows} AS w, executor, pause WHERE w.workflow_id = $2::text "
            f"AND {OWNED} FOR SHARE OF w ON CONFLICT DO NOTHING"
        )


class RequestStatements:
    """SQL for a transaction that claims a request and records its response.

    Attributes:
        claim: Inserts the request's row, and selects how many rows were inserted. Parameters:
            the time limit for the wait for another transaction, in milliseconds, and the row.
        answer: Ends the request and inserts its response, if the executor is alive. Parameters:
            the executor, the end, and the response's row.
        start: Inserts a workflow that the request starts. Parameters: its row.
    """

    def __init__(self, names: PostgresNames) -> None:
        workflows, responses = columns(tables.workflows), columns(tables.responses)
        changes = ", ".join(f"{name} = excluded.{name}" for name in responses[1:])
        # Invariant: the claim's lock_timeout does not hold for the application's statements. The
        # row is inserted before it is counted, and counted before the setting is restored.
        self.claim = (
            "WITH setting AS MATERIALIZED (SELECT current_setting('lock_timeout') AS value), "
            "waiting AS MATERIALIZED ("
            "SELECT value, set_config('lock_timeout', $1::text, true) FROM setting), "
            f"claimed AS (INSERT INTO {names.workflows} ({', '.join(workflows)}) "
            f"SELECT {_typed(tables.workflows, first=2)} FROM waiting "
            "ON CONFLICT DO NOTHING RETURNING 1), "
            "counted AS MATERIALIZED (SELECT count(*) AS inserted FROM claimed) "
            "SELECT inserted, set_config('lock_timeout', value, true) FROM counted, waiting"
        )
        # Invariant: as for a step's record, the last statement locks the fence.
        self.answer = (
            f"WITH executor AS MATERIALIZED ({names.fence('$1::text')}), pause AS MATERIALIZED ("
            f"SELECT set_config('idle_in_transaction_session_timeout', '{LONGEST_PAUSE}', true)), "
            f"ended AS (UPDATE {names.workflows} AS w SET state = $3::text, output = $4::bytea, "
            f"error = $5::bytea, updated_at_us = $6::int8 FROM executor, pause "
            f"WHERE w.workflow_id = $2::text AND {OWNED} RETURNING 1) "
            f"INSERT INTO {names.responses} ({', '.join(responses)}) "
            f"SELECT {_typed(tables.responses, first=7)} FROM ended "
            f"ON CONFLICT (workflow_id) DO UPDATE SET {changes}"
        )
        self.start = (
            f"INSERT INTO {names.workflows} ({', '.join(workflows)}) "
            f"SELECT {_typed(tables.workflows, first=1)} ON CONFLICT DO NOTHING"
        )


def _typed(table: sa.Table, *, first: int) -> str:
    """Return one parameter for each column of a table."""
    return ", ".join(
        f"${number}::{type_of(column)}" for number, column in enumerate(table.columns, first)
    )


@contextmanager
def waiting_for_claim(slot: RequestSlot) -> Iterator[None]:
    """Raise an error of its own for a claim that has waited for too long.

    Raises:
        SlotBusyError: Another transaction held the request's id until the time limit.
    """
    try:
        yield
    except Exception as error:
        if sqlstate_of(getattr(error, "orig", error)) != LOCK_NOT_AVAILABLE:
            raise
        workflow_id = slot.workflow.workflow_id
        msg = f"another transaction holds the request {workflow_id!r}"
        raise SlotBusyError(msg) from None


def response_parameters(end: FinishWorkflow) -> tuple[Any, ...]:
    """Return the parameters of :attr:`RequestStatements.answer`."""
    if end.response is None:
        msg = "a request ends with a response"
        raise TypeError(msg)
    row = (end.workflow_id, end.state.value, end.output, end.error, end.finished_at_us)
    return (end.executor_id, *row, *response_values(end.response))


def lock_timeout_of(slot: RequestSlot) -> str:
    """Return a claim's time limit as ``lock_timeout``: milliseconds, at least 1 (0 is no limit)."""
    return str(max(1, round(slot.wait_seconds * 1000)))


def request_taken(slot: RequestSlot) -> SlotTakenError:
    """Return the error for a request that exists already, or whose executor is not alive."""
    return SlotTakenError(f"the request {slot.workflow.workflow_id!r} cannot be claimed")


def step_taken(slot: StepSlot) -> SlotTakenError:
    """Return the error for a place in the step log that is not free."""
    return SlotTakenError(f"step {slot.step_number} of workflow {slot.workflow_id!r} is not free")
