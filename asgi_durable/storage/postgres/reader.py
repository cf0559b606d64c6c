"""Reads the step log, with a number of statements that does not depend on the workflows'."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from asgi_durable.storage import tables
from asgi_durable.storage.damaged_rows import DamagedRows, StoredLogs
from asgi_durable.storage.postgres.connections.reconnecting import (
    Connection,
    ReconnectingConnection,
)
from asgi_durable.storage.postgres.errors import is_bad_row
from asgi_durable.storage.postgres.rows import (
    PostgresNames,
    chunk_from,
    each_of,
    list_of,
    response_from,
    step_from,
    workflow_from,
)
from asgi_durable.storage.postgres.secret import read_secret
from asgi_durable.storage.protocol import PAGE_BYTES
from asgi_durable.storage.records import (
    SLEEP,
    ChunkRecord,
    ResponseRecord,
    StoredProgress,
    StoredRun,
    StoredSecret,
    WorkflowRecord,
)

__all__ = ["PostgresReader"]


class PostgresReader:
    """Reads on a connection of its own.

    Args:
        connection: The connection.
        names: The tables' names.
        damaged: Logs damaged rows.
    """

    def __init__(
        self, connection: ReconnectingConnection, names: PostgresNames, damaged: DamagedRows
    ) -> None:
        self._connection, self._damaged = connection, damaged
        workflows = f"SELECT {list_of(tables.workflows, 'w')} FROM {names.workflows} AS w"
        responses = f"SELECT {list_of(tables.responses, 'r')} FROM {names.responses} AS r"
        self._workflow = f"{workflows} WHERE w.workflow_id = $1"
        self._response = f"{responses} WHERE r.workflow_id = $1"
        self._chunks = (
            f"SELECT {list_of(tables.pieces, 'p')} FROM {names.pieces} AS p "
            "WHERE p.workflow_id = $1 AND p.end_offset > $2::int8 "
            f"AND p.end_offset <= greatest($2::int8 + {PAGE_BYTES}, (SELECT next.end_offset "
            f"FROM {names.pieces} AS next WHERE next.workflow_id = $1 "
            "AND next.end_offset > $2::int8 ORDER BY next.end_offset LIMIT 1)) "
            "ORDER BY p.end_offset"
        )
        self._progress = _progress_statement(names)
        wanted = "FROM unnest($1::text[]) AS wanted(id)"
        self._workflows = (
            f"SELECT {list_of(tables.workflows, 'w')} {wanted} "
            f"{each_of(names.workflows, 'w.workflow_id = wanted.id')} ORDER BY w.workflow_id"
        )
        self._steps = (
            f"SELECT {list_of(tables.steps, 's')} {wanted} "
            f"{each_of(names.steps, 's.workflow_id = wanted.id', 's')} "
            "ORDER BY s.workflow_id, s.step_number"
        )
        self._children = (
            f"SELECT {list_of(tables.workflows, 'w')} {wanted} "
            f"{each_of(names.workflows, 'w.parent_id = wanted.id')} "
            "ORDER BY w.parent_id, w.parent_step, w.workflow_id"
        )
        by_id = each_of(names.workflows, "w.workflow_id = wanted.id")
        self._cancelled = f"SELECT w.workflow_id {wanted} {by_id} WHERE w.state = 'CANCELLED'"
        self._unknown = f"{workflows} WHERE {_unknown(names)} ORDER BY w.workflow_id LIMIT $2"
        # OFFSET keeps the planner from walking along the primary key past all finished workflows.
        self._pending = (
            f"SELECT workflow_id FROM (SELECT w.workflow_id FROM {names.workflows} AS w "
            "WHERE w.state = 'PENDING' AND w.executor_id = $1 OFFSET 0) AS pending "
            "WHERE workflow_id > $2 ORDER BY workflow_id LIMIT $3"
        )

    async def get_workflow(self, workflow_id: str) -> WorkflowRecord | None:
        """See ``StepLog.get_workflow``."""
        rows = await self._fetch(self._workflow, workflow_id)
        return self._damaged.read(workflow_from, rows[0]) if rows else None

    async def get_progress(self, workflow_id: str) -> StoredProgress | None:
        """See ``StepLog.get_progress``."""
        for row in await self._fetch(self._progress, workflow_id):
            return StoredProgress(
                workflow=self._damaged.read(workflow_from, row),
                is_owned=row["is_owned"],
                entries=row["entries"],
                sleeps_until_us=row["sleeps_until_us"],
            )
        return None

    async def get_response(self, workflow_id: str) -> ResponseRecord | None:
        """See ``StepLog.get_response``."""
        rows = await self._fetch(self._response, workflow_id)
        return response_from(rows[0]) if rows else None

    async def read_chunks(self, workflow_id: str, after: int) -> list[ChunkRecord]:
        """See ``StepLog.read_chunks``."""
        return [chunk_from(row) for row in await self._fetch(self._chunks, workflow_id, after)]

    async def load_runs(self, workflow_ids: Sequence[str]) -> list[StoredRun]:
        """See ``StepLog.load_runs``."""
        if not workflow_ids:
            return []
        try:
            ids = list(dict.fromkeys(workflow_ids))
            return await self._connection.run(lambda connection: self._load_runs(connection, ids))
        except Exception as error:
            if not is_bad_row(error):
                raise
        if len(workflow_ids) == 1:
            return []
        # The database cannot hold one of the ids. The halves find the workflows of the others.
        middle = len(workflow_ids) // 2
        halves = (workflow_ids[:middle], workflow_ids[middle:])
        return [run for half in halves for run in await self.load_runs(half)]

    async def list_cancelled(self, workflow_ids: Sequence[str]) -> list[str]:
        """See ``StepLog.list_cancelled``."""
        rows = await self._fetch(self._cancelled, list(workflow_ids))
        return [row["workflow_id"] for row in rows]

    async def list_pending(self, executor_id: str, after: str, limit: int) -> list[str]:
        """See ``StepLog.list_pending``."""
        rows = await self._fetch(self._pending, executor_id, after, limit)
        return [row["workflow_id"] for row in rows]

    async def read_secret(self, names: PostgresNames) -> StoredSecret:
        """See ``Secrets.read_secret``."""
        return await self._connection.run(lambda connection: read_secret(connection, names))

    async def list_unknown(self, names: Collection[str], limit: int) -> list[WorkflowRecord]:
        """See ``StepLog.list_unknown``."""
        return self._damaged.sound(workflow_from, await self._fetch(self._unknown, [*names], limit))

    async def _load_runs(self, connection: Connection, workflow_ids: list[str]) -> list[StoredRun]:
        workflows = await connection.fetch(self._workflows, workflow_ids)
        logs = StoredLogs(self._damaged)
        for row in await connection.fetch(self._steps, workflow_ids):
            logs.add_step(row["workflow_id"], step_from, row)
        for row in await connection.fetch(self._children, workflow_ids):
            logs.add_child(row["parent_id"], workflow_from, row)
        return logs.runs(workflow_from, workflows)

    async def _fetch(self, statement: str, *values: Any) -> list[Any]:
        try:
            return await self._connection.run(
                lambda connection: connection.fetch(statement, *values)
            )
        except Exception as error:
            if is_bad_row(error):
                # The database cannot hold the id, so there is no such row.
                return []
            raise


def _progress_statement(names: PostgresNames) -> str:
    """Return the statement that reads a workflow's progress, by its id."""
    progress = (
        f"SELECT {list_of(tables.workflows, 'w')}, EXISTS (SELECT 1 FROM {names.executors} "
        "AS e WHERE e.executor_id = w.executor_id AND e.state = 'ALIVE') AS is_owned, "
        f"(SELECT count(*) FROM {names.steps} AS s WHERE s.workflow_id = w.workflow_id) "
        f"+ (SELECT count(*) FROM {names.workflows} AS c WHERE c.parent_id = w.workflow_id) "
        f"AS entries FROM {names.workflows} AS w WHERE w.workflow_id = $1"
    )
    return (
        f"SELECT p.*, (SELECT s.finished_at_us FROM {names.steps} AS s "
        "WHERE s.workflow_id = p.workflow_id AND s.step_number = p.entries - 1 "
        f"AND s.name = '{SLEEP}') AS sleeps_until_us FROM ({progress}) AS p"
    )


def _unknown(names: PostgresNames) -> str:
    """Return the condition for workflows that no process can run; $1 is the known names."""
    return (
        "w.state = 'PENDING' AND w.fingerprint IS NULL AND w.name <> ALL($1::text[]) "
        f"AND NOT EXISTS (SELECT 1 FROM {names.executors} AS e "
        "WHERE e.executor_id = w.executor_id AND e.state = 'ALIVE')"
    )
