"""Deletes requests whose retention is over."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2s
from typing import Any

from asgi_durable.storage.postgres.connections.reconnecting import (
    Connection,
    ReconnectingConnection,
)
from asgi_durable.storage.postgres.rows import PostgresNames, each_of
from asgi_durable.storage.protocol import PUT_OFF_US
from asgi_durable.storage.records import TOMBSTONE_STATUS, WorkflowState

__all__ = ["PostgresRetention"]

# First half of the key of the advisory lock with which one process at a time sweeps a schema.
SWEEP_LOCK_CLASS = 0x73776570
# Holds for one transaction. The planner overestimates the number of workflows below a request, and
# compiling the statement would take twenty times as long as running it.
WITHOUT_JIT = "set_config('jit', 'off', true)"


class PostgresRetention:
    """Deletes requests, on an event loop that the application cannot block.

    Args:
        connection: The connection that writes.
        names: The tables' names.
    """

    def __init__(self, connection: ReconnectingConnection, names: PostgresNames) -> None:
        self._connection = connection
        self._sql = _RetentionStatements(names)

    async def forget_expired(self, now_us: int, abandoned_before_us: int, limit: int) -> int:
        """See ``StepLog.forget_expired``."""

        async def sweep(connection: Connection) -> int:
            # Nearly always there is nothing to delete, and this is the only statement.
            row = await connection.fetch_one(self._sql.is_due, now_us, abandoned_before_us)
            if not row["is_due"]:
                return 0
            async with connection.transaction():
                # Invariant: requests are locked before the workflows below them are read, by a
                # later statement. No workflow can begin below a locked request: it is finished,
                # or has no owner, and nobody can claim it.
                ids = await _ids(connection, self._sql.lock_expired, now_us, limit)
                left = limit - len(ids)
                ids += await _ids(connection, self._sql.lock_abandoned, abandoned_before_us, left)
                if not ids:
                    return 0
                fates = await self._forget(connection, ids, now_us, abandoned_before_us)
                return len(fates)

        return await self._connection.run(sweep)

    async def forget_request(self, workflow_id: str, now_us: int) -> bool:
        """See ``StepLog.forget_request``."""

        async def forget(connection: Connection) -> bool:
            async with connection.transaction():
                # Invariant: the row is locked before it is read, as it may be finished before the
                # lock is granted.
                if not await connection.fetch(self._sql.lock_request, workflow_id):
                    return True
                found = await connection.fetch_one(self._sql.find_request, workflow_id, now_us)
                if found["is_expired"]:
                    (fate,) = await self._forget(connection, [workflow_id], now_us, 0)
                    return not fate["is_busy"] and not fate["leaves_tombstone"]
                # The key may have been claimed again since it was found to be expired.
                is_reused = found["state"] == WorkflowState.PENDING.value or found["is_answered"]
                return bool(found["is_request"] and is_reused)

        return await self._connection.run(forget)

    async def _forget(
        self,
        connection: Connection,
        workflow_ids: Sequence[str],
        now_us: int,
        abandoned_before_us: int,
    ) -> list[Any]:
        put_off = (now_us + PUT_OFF_US, abandoned_before_us + PUT_OFF_US)
        return await connection.fetch(self._sql.forget, workflow_ids, now_us, *put_off)


async def _ids(connection: Connection, statement: str, *values: int) -> list[str]:
    return [row["workflow_id"] for row in await connection.fetch(statement, *values)]


class _RetentionStatements:
    """SQL text for one schema."""

    def __init__(self, names: PostgresNames) -> None:
        self._names = names
        self.is_due = (
            f"SELECT EXISTS (SELECT 1 FROM {names.responses} AS r "
            "WHERE r.expires_at_us <= $1::int8) OR EXISTS "
            f"(SELECT 1 FROM {names.workflows} AS w WHERE w.state = 'PENDING' "
            "AND w.fingerprint IS NOT NULL AND w.updated_at_us < $2::int8) AS is_due"
        )
        # Nothing is found while another process has this lock, until its transaction ends.
        digest = blake2s(names.schema.encode(), digest_size=4).digest()
        self.sweep_lock_key = int.from_bytes(digest, "big", signed=True)
        if_alone = (
            "WITH sweep AS MATERIALIZED (SELECT pg_try_advisory_xact_lock("
            f"{SWEEP_LOCK_CLASS}, {self.sweep_lock_key}) AS is_mine, {WITHOUT_JIT}) "
        )
        # SKIP LOCKED, so that a sweep waits for no lock and cannot be part of a deadlock.
        expired = (
            f"SELECT r.workflow_id AS id FROM {names.responses} AS r "
            "WHERE r.expires_at_us <= $1::int8 ORDER BY r.expires_at_us LIMIT $2::int8"
        )
        self.lock_expired = (
            f"{if_alone}SELECT target.workflow_id FROM ({expired}) AS wanted "
            f"{each_of(names.workflows, 'w.workflow_id = wanted.id')} "
            f"JOIN {names.workflows} AS target ON target.ctid = w.place "
            "CROSS JOIN sweep WHERE sweep.is_mine "
            "ORDER BY target.workflow_id FOR UPDATE OF target SKIP LOCKED"
        )
        # A workflow has no owner once its owner's fence is deleted. Until then a transaction of
        # the owner may still commit.
        self.lock_abandoned = (
            f"{if_alone}SELECT w.workflow_id FROM {names.workflows} AS w "
            "CROSS JOIN sweep WHERE sweep.is_mine "
            "AND w.state = 'PENDING' AND w.fingerprint IS NOT NULL "
            "AND w.updated_at_us < $1::int8 AND NOT EXISTS "
            f"(SELECT 1 FROM {names.fences} AS f WHERE f.executor_id = w.executor_id) "
            "ORDER BY w.updated_at_us LIMIT $2::int8 FOR UPDATE OF w SKIP LOCKED"
        )
        self.lock_request = (
            f"SELECT {WITHOUT_JIT} FROM {names.workflows} AS w WHERE w.workflow_id = $1 "
            "FOR UPDATE OF w"
        )
        self.find_request = (
            "SELECT w.state, w.fingerprint IS NOT NULL AS is_request, "
            "r.workflow_id IS NOT NULL AS is_answered, "
            "coalesce(r.expires_at_us <= $2::int8, false) AS is_expired "
            f"FROM {names.workflows} AS w LEFT JOIN {names.responses} AS r "
            "ON r.workflow_id = w.workflow_id WHERE w.workflow_id = $1"
        )
        self.forget = self._forget()

    def _forget(self) -> str:
        """Return a statement: $1 locked requests, $2 now, $3 and $4 new times of busy requests.

        $3 postpones responses, $4 claims. One statement does it all, so that the ids of the
        workflows below a request are not sent, however many there are.
        """
        changes = {
            "steps_deleted": self._delete(self._names.steps, "emptied"),
            "chunks_deleted": self._delete(self._names.pieces, "fate", "NOT fate.is_busy"),
            "responses_deleted": self._delete(
                self._names.responses, "fate", "NOT fate.is_busy AND NOT fate.leaves_tombstone"
            ),
            "workflows_deleted": self._delete(
                self._names.workflows, "emptied", "NOT emptied.leaves_tombstone"
            ),
            "tombstones": self._update(
                self._names.responses,
                f"status_code = {TOMBSTONE_STATUS}, headers = '[]', body = NULL, "
                "stream_end = NULL, expires_at_us = target.forgotten_at_us",
                "NOT fate.is_busy AND fate.leaves_tombstone",
            ),
            "responses_postponed": self._update(
                self._names.responses,
                "expires_at_us = $3, forgotten_at_us = greatest(target.forgotten_at_us, $3)",
                "fate.is_busy",
            ),
            "claims_postponed": self._update(
                self._names.workflows, "updated_at_us = $4", "fate.is_busy AND fate.is_pending"
            ),
        }
        parts = self._fates() | {f"{name} AS": sql for name, sql in changes.items()}
        return (
            f"WITH RECURSIVE {', '.join(f'{head} ({sql})' for head, sql in parts.items())} "
            "SELECT fate.is_busy, fate.leaves_tombstone FROM fate"
        )

    def _fates(self) -> dict[str, str]:
        """Return the CTEs that decide about each request, and list workflows to delete."""
        workflows = self._names.workflows
        response = (
            "LEFT JOIN LATERAL (SELECT r.expires_at_us, r.forgotten_at_us "
            f"FROM {self._names.responses} AS r WHERE r.workflow_id = w.workflow_id OFFSET 0) "
            "AS r ON true"
        )
        children = "{root}, c.workflow_id, c.state = 'PENDING' FROM {parent} " + each_of(
            workflows, "c.parent_id = {parent}.workflow_id", "c"
        )
        return {
            "root AS MATERIALIZED": (
                "SELECT w.workflow_id, w.state = 'PENDING' AS is_pending, "
                "coalesce(r.forgotten_at_us > $2::int8, false) AS leaves_tombstone "
                "FROM unnest($1::text[]) AS wanted(id) "
                f"{each_of(workflows, 'w.workflow_id = wanted.id')} {response} "
                "WHERE w.fingerprint IS NOT NULL AND (w.state = 'PENDING' OR r.expires_at_us <= $2)"
            ),
            "below(root_id, workflow_id, is_pending) AS": (
                f"SELECT {children.format(root='root.workflow_id', parent='root')} UNION ALL "
                f"SELECT {children.format(root='below.root_id', parent='below')}"
            ),
            "busy AS MATERIALIZED": "SELECT DISTINCT root_id FROM below WHERE is_pending",
            "fate AS MATERIALIZED": (
                "SELECT root.*, root.workflow_id IN (SELECT root_id FROM busy) AS is_busy FROM root"
            ),
            "emptied AS MATERIALIZED": (
                "SELECT workflow_id, leaves_tombstone FROM fate WHERE NOT is_busy UNION ALL "
                "SELECT below.workflow_id, false FROM below "
                "WHERE below.root_id NOT IN (SELECT root_id FROM busy)"
            ),
        }

    def _delete(self, table: str, source: str, condition: str = "true") -> str:
        return (
            f"DELETE FROM {table} AS target USING {source} {_rows_of(table, source)} "
            f"WHERE target.ctid = found.place AND {condition}"
        )

    def _update(self, table: str, changes: str, condition: str) -> str:
        return (
            f"UPDATE {table} AS target SET {changes} FROM fate {_rows_of(table, 'fate')} "
            f"WHERE target.ctid = found.place AND {condition}"
        )


def _rows_of(table: str, source: str) -> str:
    return each_of(table, f"found.workflow_id = {source}.workflow_id", "found")
