"""Cancels workflows, and the workflows that they have called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asgi_durable.storage import tables
from asgi_durable.storage.postgres.connections.reconnecting import Connection
from asgi_durable.storage.postgres.errors import ChangedMeanwhileError
from asgi_durable.storage.postgres.rows import (
    Parameters,
    PostgresNames,
    arrays_of,
    columns,
    each_of,
    list_of,
    response_values,
    workflow_from,
)
from asgi_durable.storage.records import WorkflowRecord, WorkflowState
from asgi_durable.storage.writes import CancelWorkflow, Outcome, OutcomeKind, Write

__all__ = ["CancelStatements", "cancel_workflows"]


class CancelStatements:
    """SQL text for one schema; $1 is an array of workflow ids in each statement."""

    def __init__(self, names: PostgresNames) -> None:
        workflows = names.workflows
        wanted = each_of(workflows, "w.workflow_id = wanted.id")
        called = each_of(
            workflows,
            "c.parent_id = called.workflow_id AND c.awaited "
            "AND c.state IN ('PENDING', 'CANCELLED')",
            "c",
        )
        # The workflows, and the workflows below them that are running or cancelled.
        all_called = (
            "WITH RECURSIVE called(root_id, workflow_id) AS ("
            f"SELECT w.workflow_id, w.workflow_id FROM unnest($1::text[]) AS wanted(id) {wanted} "
            f"UNION ALL SELECT called.root_id, c.workflow_id FROM called {called}) "
        )
        of_called = each_of(workflows, "w.workflow_id = called.workflow_id")
        # Sorted, so that two processes that cancel the same workflows wait and do not deadlock.
        # The lock also waits for a transaction that is about to commit a record.
        self.lock = (
            f"{all_called} SELECT target.workflow_id FROM called {of_called} "
            f"JOIN {workflows} AS target ON target.ctid = w.place WHERE w.state = 'PENDING' "
            "ORDER BY target.workflow_id FOR NO KEY UPDATE OF target"
        )
        self.find = (
            f"SELECT {list_of(tables.workflows, 'w')} "
            f"FROM unnest($1::text[]) AS wanted(id) {wanted}"
        )
        self.cancel = (
            f"{all_called} UPDATE {workflows} AS target "
            f"SET state = 'CANCELLED', updated_at_us = $2::int8 FROM called {of_called} "
            "WHERE target.ctid = w.place AND w.state = 'PENDING'"
        )
        source = Parameters().unnest(tables.responses.columns, "new")
        self.insert_responses = (
            f"INSERT INTO {names.responses} ({', '.join(columns(tables.responses))}) "
            f"SELECT {list_of(tables.responses, 'new')} FROM {source} ON CONFLICT DO NOTHING"
        )
        self.find_cancelled = (
            f"{all_called} SELECT called.root_id, w.workflow_id, w.executor_id "
            f"FROM called {of_called} WHERE w.state = 'CANCELLED'"
        )


async def cancel_workflows(
    connection: Connection, statements: CancelStatements, writes: Sequence[Write]
) -> dict[int, Outcome]:
    """Apply the cancellations among some writes; return their outcomes by the writes' ``id()``.

    Raises:
        ChangedMeanwhileError: Other processes changed the rows.
    """
    wanted = [write for write in writes if isinstance(write, CancelWorkflow)]
    if not wanted:
        return {}
    ids = [write.workflow_id for write in wanted]
    # Invariant: rows are locked before they are read. A locked row cannot change before the
    # COMMIT, and a row that was not locked has another outcome, which is final.
    await connection.fetch(statements.lock, ids)
    rows = await connection.fetch(statements.find, ids)
    found = {row["workflow_id"]: workflow_from(row) for row in rows}
    granted = [write for write in wanted if _may_be_cancelled(found.get(write.workflow_id))]
    outcomes = {
        id(write): Outcome(OutcomeKind.CONFLICT, existing=found.get(write.workflow_id))
        for write in wanted
    }
    if granted:
        cancelled = await _cancel(connection, statements, granted, found)
        outcomes |= {
            id(write): Outcome(OutcomeKind.DONE, cancelled=tuple(cancelled[write.workflow_id]))
            for write in granted
        }
    return outcomes


async def _cancel(
    connection: Connection,
    statements: CancelStatements,
    writes: Sequence[CancelWorkflow],
    found: Mapping[str, WorkflowRecord],
) -> dict[str, list[tuple[str, str | None]]]:
    """Return the id and the executor of each workflow that is cancelled, by the root's id."""
    ids = [write.workflow_id for write in writes]
    # The workflows below are searched again: more may have been called since the lock.
    await connection.fetch(statements.cancel, ids, max(write.cancelled_at_us for write in writes))
    responses = [
        response_values(write.response)
        for write in writes
        if write.response is not None and _is_open_request(found[write.workflow_id])
    ]
    if responses:
        await connection.fetch(statements.insert_responses, *arrays_of(responses))
    cancelled: dict[str, list[tuple[str, str | None]]] = {}
    for row in await connection.fetch(statements.find_cancelled, ids):
        cancelled.setdefault(row["root_id"], []).append((row["workflow_id"], row["executor_id"]))
    if cancelled.keys() != set(ids):
        # A row was being changed, so it was not locked, and has another outcome now.
        raise ChangedMeanwhileError
    return cancelled


def _may_be_cancelled(existing: WorkflowRecord | None) -> bool:
    if existing is None:
        return False
    return not existing.is_final or existing.state is WorkflowState.CANCELLED


def _is_open_request(existing: WorkflowRecord) -> bool:
    return existing.is_request and not existing.is_final
