"""Delete expired requests from a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from asgi_durable.storage import tables
from asgi_durable.storage.protocol import PUT_OFF_US
from asgi_durable.storage.records import TOMBSTONE_STATUS, WorkflowState
from asgi_durable.storage.sqlite.executors import LIVING
from asgi_durable.storage.sqlite.file import write_transaction
from asgi_durable.storage.sqlite.rows import json_list

__all__ = ["SQLiteRetention"]

_WORKFLOWS, _STEPS, _RESPONSES, _CHUNKS = (
    tables.workflows.name,
    tables.steps.name,
    tables.responses.name,
    tables.pieces.name,
)
_AMONG = "IN (SELECT value FROM json_each(?))"

_IS_DUE = (
    f"SELECT EXISTS (SELECT 1 FROM {_RESPONSES} WHERE expires_at_us <= ?) OR EXISTS "
    f"(SELECT 1 FROM {_WORKFLOWS} WHERE state = 'PENDING' AND fingerprint IS NOT NULL "
    "AND updated_at_us < ?)"
)
_EXPIRED = (
    f"SELECT workflow_id FROM {_RESPONSES} WHERE expires_at_us <= ? "
    "AND typeof(workflow_id) = 'text' ORDER BY expires_at_us LIMIT ?"
)
_ABANDONED = (
    f"SELECT workflow_id FROM {_WORKFLOWS} WHERE state = 'PENDING' AND fingerprint IS NOT NULL "
    f"AND updated_at_us < ? AND ifnull(executor_id NOT IN ({LIVING}), true) "
    "AND typeof(workflow_id) = 'text' ORDER BY updated_at_us LIMIT ?"
)
# Workflows below some roots, at any depth, as (root, id, is PENDING).
_BELOW = (
    "WITH RECURSIVE below(root_id, workflow_id, is_pending) AS ("
    "SELECT value, value, false FROM json_each(?) UNION ALL "
    "SELECT below.root_id, child.workflow_id, child.state = 'PENDING' "
    f"FROM below CROSS JOIN {_WORKFLOWS} AS child ON child.parent_id = below.workflow_id"
    ") SELECT root_id, workflow_id, is_pending FROM below WHERE workflow_id <> root_id"
)
_FIND = (
    "SELECT w.fingerprint IS NOT NULL, w.state, r.expires_at_us "
    f"FROM {_WORKFLOWS} AS w LEFT JOIN {_RESPONSES} AS r ON r.workflow_id = w.workflow_id "
    "WHERE w.workflow_id = ?"
)
_FIND_TOMBSTONES = (
    f"SELECT workflow_id FROM {_RESPONSES} WHERE workflow_id {_AMONG} AND forgotten_at_us > ?"
)
_LEAVE_TOMBSTONES = (
    f"UPDATE {_RESPONSES} SET status_code = {TOMBSTONE_STATUS}, headers = CAST('[]' AS BLOB), "
    f"body = NULL, stream_end = NULL, expires_at_us = forgotten_at_us "
    f"WHERE workflow_id {_AMONG}"
)
_PUT_OFF_EXPIRED = (
    f"UPDATE {_RESPONSES} SET expires_at_us = ?, forgotten_at_us = max(forgotten_at_us, ?) "
    f"WHERE workflow_id {_AMONG}"
)
_PUT_OFF_ABANDONED = (
    f"UPDATE {_WORKFLOWS} SET updated_at_us = ? WHERE workflow_id {_AMONG} AND state = 'PENDING'"
)


class SQLiteRetention:
    """Deletes expired requests.

    Args:
        writer: The connection that writes.
    """

    def __init__(self, writer: sqlite3.Connection) -> None:
        self._writer = writer

    def forget_expired(self, now_us: int, abandoned_before_us: int, limit: int) -> int:
        """See ``StepLog.forget_expired``."""
        # Nearly always there is nothing to do, and then the write lock is not taken.
        (is_due,) = self._writer.execute(_IS_DUE, (now_us, abandoned_before_us)).fetchone()
        if not is_due:
            return 0
        with write_transaction(self._writer):
            expired = self._ids(_EXPIRED, now_us, limit)
            self._forget(expired, now_us)
            abandoned = self._ids(_ABANDONED, abandoned_before_us, limit - len(expired))
            deleted = self._forget(abandoned, now_us)
            put_off = json_list(set(abandoned) - deleted)
            self._writer.execute(_PUT_OFF_ABANDONED, (abandoned_before_us + PUT_OFF_US, put_off))
        return len(expired) + len(abandoned)

    def forget_request(self, workflow_id: str, now_us: int) -> bool:
        """See ``StepLog.forget_request``."""
        with write_transaction(self._writer):
            found = self._writer.execute(_FIND, (workflow_id,)).fetchone()
            if found is None:
                return True
            is_request, state, expires_at_us = found
            if expires_at_us is not None and expires_at_us <= now_us:
                return workflow_id in self._forget([workflow_id], now_us)
            # Another request has claimed the key since it was found to be expired.
            is_new = state == WorkflowState.PENDING.value or expires_at_us is not None
            return bool(is_request) and is_new

    def _forget(self, workflow_ids: Sequence[str], now_us: int) -> set[str]:
        """Forget requests, or postpone the expiry of their responses; return the deleted ones."""
        rows = self._writer.execute(_BELOW, (json_list(workflow_ids),)).fetchall()
        busy = {root_id for root_id, _, is_pending in rows if is_pending}
        forgettable = set(workflow_ids) - busy
        below = {i for root_id, i, _ in rows if root_id in forgettable and isinstance(i, str)}
        tombstones = set(self._ids(_FIND_TOMBSTONES, json_list(forgettable), now_us))
        deleted = forgettable - tombstones
        self._delete(_STEPS, forgettable | below)
        self._delete(_CHUNKS, forgettable)
        self._delete(_RESPONSES, deleted)
        self._delete(_WORKFLOWS, deleted | below)
        self._writer.execute(_LEAVE_TOMBSTONES, (json_list(tombstones),))
        put_off_until_us = now_us + PUT_OFF_US
        self._writer.execute(
            _PUT_OFF_EXPIRED, (put_off_until_us, put_off_until_us, json_list(busy))
        )
        return deleted

    def _ids(self, select: str, *parameters: object) -> list[str]:
        rows = self._writer.execute(select, parameters)
        # An id that is not text is damaged, and its row stays.
        return [row[0] for row in rows if isinstance(row[0], str)]

    def _delete(self, table: str, workflow_ids: Iterable[str]) -> None:
        statement = f"DELETE FROM {table} WHERE workflow_id {_AMONG}"
        self._writer.execute(statement, (json_list(workflow_ids),))
