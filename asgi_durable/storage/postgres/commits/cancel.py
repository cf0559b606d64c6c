"""Cancelling workflows in a PostgreSQL schema, and those that they have called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asgi_durable.storage import tables
from asgi_durable.storage.postgres.connections.reconnecting import Wire
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
    """SQL text for one schema; $1 are ids of workflows everywhere."""

    def __init__(self, names: PostgresNames) -> None:
        workflows = names.workflows
        wanted = each_of(workflows, "w.workflow_id = wanted.id")
        called = each_of(
            workflows,
            "c.parent_id = called.workflow_id AND c.awaited "
            "AND c.state IN ('PENDING', 'CANCELLED')",
            "c",
        )
        # The workflows, and at any depth those that they called and that have no other outcome.
        all_called = (
            "WITH RECURSIVE called(root_id, workflow_id) AS ("
            f"SELECT w.workflow_id, w.workflow_id FROM unnest($1::text[]) AS wanted(id) {wanted} "
            f"UNION ALL SELECT called.root_id, c.workflow_id FROM called {called}) "
        )
        of_called = each_of(workflows, "w.workflow_id = called.workflow_id")
        # In order of id: two who cancel the same wait, and do not deadlock. So does one whose
        # transaction is about to commit: it is waited for, and what it has recorded stays.
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
        self.keep_answers = (
            f"INSERT INTO {names.responses} ({', '.join(columns(tables.responses))}) "
            f"SELECT {list_of(tables.responses, 'new')} FROM {source} ON CONFLICT DO NOTHING"
        )
        self.find_cancelled = (
            f"{all_called} SELECT called.root_id, w.workflow_id, w.executor_id "
            f"FROM called {of_called} WHERE w.state = 'CANCELLED'"
        )


async def cancel_workflows(
    wire: Wire, statements: CancelStatements, writes: Sequence[Write]
) -> dict[int, Outcome]:
    """Apply those of some writes that cancel; return what became of them, by their ``id()``.

    Raises:
        ChangedMeanwhileError: Others were faster.
    """
    wanted = [write for write in writes if isinstance(write, CancelWorkflow)]
    if not wanted:
        return {}
    ids = [write.workflow_id for write in wanted]
    # Invariant: locked first and read after. The state of a locked row stays true, and a row with
    # another outcome keeps it.
    await wire.fetch(statements.lock, ids)
    rows = await wire.fetch(statements.find, ids)
    found = {row["workflow_id"]: workflow_from(row) for row in rows}
    granted = [write for write in wanted if _may_be_cancelled(found.get(write.workflow_id))]
    outcomes = {
        id(write): Outcome(OutcomeKind.CONFLICT, existing=found.get(write.workflow_id))
        for write in wanted
    }
    if granted:
        cancelled = await _cancel(wire, statements, granted, found)
        outcomes |= {
            id(write): Outcome(OutcomeKind.DONE, cancelled=tuple(cancelled[write.workflow_id]))
            for write in granted
        }
    return outcomes


async def _cancel(
    wire: Wire,
    statements: CancelStatements,
    writes: Sequence[CancelWorkflow],
    found: Mapping[str, WorkflowRecord],
) -> dict[str, list[tuple[str, str | None]]]:
    """Return what is cancelled with each workflow: ids, and executors."""
    ids = [write.workflow_id for write in writes]
    # Again, where one is cancelled: it may have called others meanwhile.
    await wire.fetch(statements.cancel, ids, max(write.cancelled_at_us for write in writes))
    answers = [
        response_values(write.response)
        for write in writes
        if write.response is not None and _is_open_request(found[write.workflow_id])
    ]
    if answers:
        await wire.fetch(statements.keep_answers, *arrays_of(answers))
    cancelled: dict[str, list[tuple[str, str | None]]] = {}
    for row in await wire.fetch(statements.find_cancelled, ids):
        cancelled.setdefault(row["root_id"], []).append((row["workflow_id"], row["executor_id"]))
    if cancelled.keys() != set(ids):
        # Not locked, as it was being changed; now it has another outcome.
        raise ChangedMeanwhileError
    return cancelled


def _may_be_cancelled(existing: WorkflowRecord | None) -> bool:
    if existing is None:
        return False
    return not existing.is_final or existing.state is WorkflowState.CANCELLED


def _is_open_request(existing: WorkflowRecord) -> bool:
    return existing.is_request and not existing.is_final
