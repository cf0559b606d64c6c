"""Forgetting requests whose time is over, in a PostgreSQL schema."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2s
from typing import Any

from asgi_durable.storage.postgres.connections.reconnecting import ReconnectingConnection, Wire
from asgi_durable.storage.postgres.rows import PostgresNames, each_of
from asgi_durable.storage.protocol import PUT_OFF_US
from asgi_durable.storage.records import TOMBSTONE_STATUS, WorkflowState

__all__ = ["PostgresRetention"]

# The first half of the advisory lock under which one process at a time sweeps a schema.
SWEEP_LOCK_CLASS = 0x73776570
# For this transaction: how much lies below a request is overestimated by far, and compiling
# the statement would take twenty times as long as running it.
WITHOUT_JIT = "set_config('jit', 'off', true)"


class PostgresRetention:
    """Forgets requests on a connection that writes, on an event loop that nobody blocks.

    Args:
        link: The connection.
        names: The tables' names.
    """

    def __init__(self, link: ReconnectingConnection, names: PostgresNames) -> None:
        self._link = link
        self._sql = _RetentionStatements(names)

    async def forget_expired(self, now_us: int, abandoned_before_us: int, limit: int) -> int:
        """See ``StepLog.forget_expired``."""

        async def sweep(wire: Wire) -> int:
            # One statement where there is nothing to do, as nearly always.
            look = await wire.fetch_one(self._sql.is_due, now_us, abandoned_before_us)
            if not look["is_due"]:
                return 0
            async with wire.transaction():
                # Invariant: requests are locked first, and what is below them is looked at in
                # a statement after that. Nothing below one begins any more: it is finished, or
                # nobody's, and can be claimed by nobody.
                ids = await _ids(wire, self._sql.lock_expired, now_us, limit)
                left = limit - len(ids)
                ids += await _ids(wire, self._sql.lock_abandoned, abandoned_before_us, left)
                if not ids:
                    return 0
                fates = await self._forget(wire, ids, now_us, abandoned_before_us)
                return len(fates)

        return await self._link.run(sweep)

    async def forget_request(self, workflow_id: str, now_us: int) -> bool:
        """See ``StepLog.forget_request``."""

        async def forget(wire: Wire) -> bool:
            async with wire.transaction():
                # Invariant: locked first and read after. It may be finished in between.
                if not await wire.fetch(self._sql.lock_request, workflow_id):
                    return True
                found = await wire.fetch_one(self._sql.find_request, workflow_id, now_us)
                if found["is_expired"]:
                    (fate,) = await self._forget(wire, [workflow_id], now_us, 0)
                    return not fate["is_busy"] and not fate["leaves_tombstone"]
                # Somebody has claimed the key since it was found to be expired.
                is_anew = found["state"] == WorkflowState.PENDING.value or found["is_answered"]
                return bool(found["is_request"] and is_anew)

        return await self._link.run(forget)

    async def _forget(
        self, wire: Wire, workflow_ids: Sequence[str], now_us: int, abandoned_before_us: int
    ) -> list[Any]:
        put_off = (now_us + PUT_OFF_US, abandoned_before_us + PUT_OFF_US)
        return await wire.fetch(self._sql.forget, workflow_ids, now_us, *put_off)


async def _ids(wire: Wire, statement: str, *values: int) -> list[str]:
    return [row["workflow_id"] for row in await wire.fetch(statement, *values)]


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
        # SKIP LOCKED: nobody is waited for here, so nobody can wait in a circle.
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
        # Free once the owner's fence is deleted: until then the owner may still be committing.
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
        """$1 locked requests, $2 now, $3 and $4 until when responses and claims are put off.

        It is one statement: the rows below a request are not sent to the client, however many.
        """
        changes = {
            "steps_gone": self._delete(self._names.steps, "emptied"),
            "pieces_gone": self._delete(self._names.pieces, "fate", "NOT fate.is_busy"),
            "answers_gone": self._delete(
                self._names.responses, "fate", "NOT fate.is_busy AND NOT fate.leaves_tombstone"
            ),
            "workflows_gone": self._delete(
                self._names.workflows, "emptied", "NOT emptied.leaves_tombstone"
            ),
            "tombstones": self._update(
                self._names.responses,
                f"status_code = {TOMBSTONE_STATUS}, headers = '[]', body = NULL, "
                "stream_end = NULL, expires_at_us = target.forgotten_at_us",
                "NOT fate.is_busy AND fate.leaves_tombstone",
            ),
            "answers_put_off": self._update(
                self._names.responses,
                "expires_at_us = $3, forgotten_at_us = greatest(target.forgotten_at_us, $3)",
                "fate.is_busy",
            ),
            "claims_put_off": self._update(
                self._names.workflows, "updated_at_us = $4", "fate.is_busy AND fate.is_pending"
            ),
        }
        parts = self._fates() | {f"{name} AS": sql for name, sql in changes.items()}
        return (
            f"WITH RECURSIVE {', '.join(f'{head} ({sql})' for head, sql in parts.items())} "
            "SELECT fate.is_busy, fate.leaves_tombstone FROM fate"
        )

    def _fates(self) -> dict[str, str]:
        """Return what becomes of each request, and whose steps are deleted."""
        workflows = self._names.workflows
        answer = (
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
                f"{each_of(workflows, 'w.workflow_id = wanted.id')} {answer} "
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
