"""The connection that reads the step log of a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from asgi_durable.storage.damaged_rows import DamagedRows, StoredLogs
from asgi_durable.storage.protocol import PAGE_BYTES
from asgi_durable.storage.records import (
    SLEEP,
    ChunkRecord,
    DamagedRowError,
    ResponseRecord,
    StoredProgress,
    StoredRun,
    WorkflowRecord,
)
from asgi_durable.storage.sqlite.executors import LIVING
from asgi_durable.storage.sqlite.file import SQLiteFile
from asgi_durable.storage.sqlite.rows import (
    SELECT_CHUNK,
    SELECT_RESPONSE,
    SELECT_STEP,
    SELECT_WORKFLOW,
    chunk_from,
    columns,
    json_list,
    response_from,
    step_from,
    text_or_bytes,
    workflow_from,
)
from asgi_durable.storage.tables import pieces, steps, workflows

__all__ = ["SQLiteReader"]

_STEPS_WORKFLOW = columns(steps).index("workflow_id")
_PARENT = columns(workflows).index("parent_id")
_AMONG = "IN (SELECT value FROM json_each(?))"
_LIST_PENDING = (
    f"SELECT workflow_id FROM {workflows.name} WHERE executor_id = ? AND state = 'PENDING' "
    "AND typeof(workflow_id) = 'text' AND workflow_id > ? ORDER BY workflow_id LIMIT ?"
)
_LIST_UNKNOWN = (
    f"{SELECT_WORKFLOW} WHERE state = 'PENDING' AND fingerprint IS NULL "
    f"AND (executor_id IS NULL OR executor_id NOT IN ({LIVING})) "
    "AND name NOT IN (SELECT value FROM json_each(?)) ORDER BY workflow_id LIMIT ?"
)
_LIST_CANCELLED = (
    f"SELECT workflow_id FROM {workflows.name} WHERE workflow_id {_AMONG} AND state = 'CANCELLED'"
)
_WORKFLOW_COLUMNS = ", ".join(columns(workflows))
_PROGRESS = (
    f"SELECT {_WORKFLOW_COLUMNS}, "
    f"ifnull(executor_id IN ({LIVING}), false) AS is_owned, "
    f"(SELECT count(*) FROM {steps.name} AS s WHERE s.workflow_id = w.workflow_id) "
    f"+ (SELECT count(*) FROM {workflows.name} AS c WHERE c.parent_id = w.workflow_id) "
    f"AS entries FROM {workflows.name} AS w"
)
_SELECT_PROGRESS = (
    f"SELECT {_WORKFLOW_COLUMNS}, is_owned, entries, "
    f"(SELECT s.finished_at_us FROM {steps.name} AS s WHERE s.workflow_id = p.workflow_id "
    f"AND s.step_number = p.entries - 1 AND s.name = '{SLEEP}') FROM ({_PROGRESS}) AS p"
)
_READ_CHUNKS = (
    f"{SELECT_CHUNK} WHERE workflow_id = :id AND end_offset > :after "
    f"AND end_offset <= max(:after + {PAGE_BYTES}, (SELECT min(next.end_offset) "
    f"FROM {pieces.name} AS next WHERE next.workflow_id = :id AND next.end_offset > :after)) "
    "ORDER BY end_offset"
)


class SQLiteReader:
    """Reads the step log; all methods run on one thread.

    Args:
        file: The database.
        damaged: Logs damaged rows.
    """

    def __init__(self, file: SQLiteFile, damaged: DamagedRows) -> None:
        self.connection = file.connect()
        self.connection.text_factory = text_or_bytes
        self._damaged = damaged

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def get_workflow(self, workflow_id: str) -> WorkflowRecord | None:
        """See ``StepLog.get_workflow``."""
        row = self._find(SELECT_WORKFLOW, workflow_id)
        return self._damaged.read(workflow_from, row) if row is not None else None

    def get_progress(self, workflow_id: str) -> StoredProgress | None:
        """See ``StepLog.get_progress``."""
        row = self._find(_SELECT_PROGRESS, workflow_id)
        if row is None:
            return None
        *fields, is_owned, entries, sleeps_until_us = row
        return StoredProgress(
            workflow=self._damaged.read(workflow_from, tuple(fields)),
            is_owned=bool(is_owned),
            entries=entries,
            sleeps_until_us=sleeps_until_us,
        )

    def get_response(self, workflow_id: str) -> ResponseRecord | None:
        """See ``StepLog.get_response``."""
        row = self._find(SELECT_RESPONSE, workflow_id)
        return self._damaged.read(response_from, row) if row is not None else None

    def read_chunks(self, workflow_id: str, after: int) -> list[ChunkRecord]:
        """See ``StepLog.read_chunks``."""
        parameters = {"id": workflow_id, "after": after}
        try:
            rows = self.connection.execute(_READ_CHUNKS, parameters).fetchall()
        except UnicodeEncodeError:  # no row can have such an id
            return []
        return [self._chunk_of(row) for row in rows]

    def _chunk_of(self, row: tuple[Any, ...]) -> ChunkRecord:
        try:
            return self._damaged.read(chunk_from, row)
        except DamagedRowError:
            workflow_id, end_offset = row[:2]
            if not isinstance(end_offset, int):
                raise
            # The record takes the place of the damaged chunk. As its data do not fit its offset,
            # the reader of the stream finds the damage.
            return ChunkRecord(
                workflow_id=workflow_id, end_offset=end_offset, cut_to=None, data=b""
            )

    def load_runs(self, workflow_ids: Sequence[str]) -> list[StoredRun]:
        """See ``StepLog.load_runs``."""
        ids = json_list(workflow_ids)
        self.connection.execute("BEGIN")
        try:
            rows = self._execute(f"{SELECT_WORKFLOW} WHERE workflow_id {_AMONG}", ids).fetchall()
            step_rows = self._execute(f"{SELECT_STEP} WHERE workflow_id {_AMONG}", ids).fetchall()
            child_rows = self._execute(f"{SELECT_WORKFLOW} WHERE parent_id {_AMONG}", ids)
            children = child_rows.fetchall()
        finally:
            self.connection.execute("ROLLBACK")
        logs = StoredLogs(self._damaged)
        for row in step_rows:
            logs.add_step(row[_STEPS_WORKFLOW], step_from, row)
        for row in children:
            logs.add_child(row[_PARENT], workflow_from, row)
        return logs.runs(workflow_from, rows)

    def list_cancelled(self, workflow_ids: Sequence[str]) -> list[str]:
        """See ``StepLog.list_cancelled``."""
        return [row[0] for row in self._execute(_LIST_CANCELLED, json_list(workflow_ids))]

    def list_pending(self, executor_id: str, after: str, limit: int) -> list[str]:
        """See ``StepLog.list_pending``."""
        rows = self._execute(_LIST_PENDING, executor_id, after, limit)
        return list(self._damaged.sound_ids(workflows.name, (row[0] for row in rows)))

    def list_unknown(self, names: Collection[str], limit: int) -> list[WorkflowRecord]:
        """See ``StepLog.list_unknown``."""
        rows = self._execute(_LIST_UNKNOWN, json_list(names), limit)
        return self._damaged.sound(workflow_from, rows)

    def _find(self, select: str, workflow_id: str) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._execute(
                f"{select} WHERE workflow_id = ?", workflow_id
            ).fetchone()
        except UnicodeEncodeError:  # no row can have such an id
            return None
        return row

    def _execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        return self.connection.execute(statement, parameters)
