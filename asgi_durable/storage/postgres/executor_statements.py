"""SQL about executors and the workflows that they own."""

from __future__ import annotations

from functools import partial

from asgi_durable.storage import tables
from asgi_durable.storage.postgres.connections.session import LOCK_CLASS
from asgi_durable.storage.postgres.rows import NOW_US, PostgresNames, list_of

__all__ = ["REQUESTS", "ExecutorStatements"]

# Keys of the advisory locks that executors hold in this database.
_HELD_KEYS = (
    "SELECT l.objid::int8 FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted "
    f"AND l.classid = {LOCK_CLASS}::oid AND l.objsubid = 2 "
    "AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())"
)
# The workflow of a function. One of a request waits for its client.
_PENDING = "w.state = 'PENDING' AND w.fingerprint IS NULL"
# A request that is recovered without its client.
_RECOVERABLE = "w.state = 'PENDING' AND w.fingerprint IS NOT NULL AND w.input IS NOT NULL"
# Stands among the excluded ids if a process can serve requests. No id contains a newline.
REQUESTS = "requests\n"
# Workflows that a process can run: $2 names, $3 bound names, $4 excluded ids.
_RUNNABLE = (
    f"{_PENDING} AND w.name = ANY($2::text[]) "
    "AND (w.parent_id IS NULL OR w.name <> ALL($3::text[])) AND w.workflow_id <> ALL($4::text[])"
)
_RUNNABLE_REQUEST = (
    f"{_RECOVERABLE} AND '{REQUESTS}' = ANY($4::text[]) AND w.workflow_id <> ALL($4::text[])"
)


class ExecutorStatements:
    """SQL text for one schema; $1 is the executor, in statements that have one."""

    def __init__(self, names: PostgresNames) -> None:
        self._names = names
        self.register = self._register()
        self.look = self._look(renews=False)
        self.renew_and_look = self._look(renews=True)
        self.is_missing = (
            f"SELECT NOT EXISTS (SELECT 1 FROM {names.executors} AS e "
            "WHERE e.executor_id = $1::text AND e.state = 'ALIVE' "
            f"AND e.lease_expires_at_us >= {NOW_US} "
            f"AND (e.session_lock IS NULL OR e.session_lock IN ({_HELD_KEYS}))) AS is_missing"
        )
        self.declare_dead = self._declare_dead()
        # The next two are statements of their own, in this order: see `PostgresNames.fence`.
        self.leave = (
            f"UPDATE {names.executors} SET state = 'RELEASED', "
            f"lease_expires_at_us = least(lease_expires_at_us, {NOW_US}) "
            "WHERE executor_id = $1::text AND state = 'ALIVE'"
        )
        self.delete_own_fence = f"DELETE FROM {names.fences} WHERE executor_id = $1::text"
        self.delete_fences = self._delete_fences()
        self.take_over = self._take_over()
        self.adopt = self._adopt()
        self.forget = (
            f"DELETE FROM {names.executors} WHERE executor_id IN ("
            f"SELECT e.executor_id FROM {names.executors} AS e WHERE {self._is_forgettable()} "
            "ORDER BY e.executor_id FOR UPDATE SKIP LOCKED)"
        )

    def _is_forgettable(self) -> str:
        owned = f"SELECT 1 FROM {self._names.workflows} AS w WHERE w.executor_id = e.executor_id"
        return (
            f"e.state <> 'ALIVE' AND NOT EXISTS ({owned} AND {_PENDING}) "
            f"AND NOT EXISTS ({owned} AND {_RECOVERABLE})"
        )

    def _register(self) -> str:
        """Return a statement: $2 lease in microseconds, $3 lock or NULL.

        It returns no row if the lock is held by another executor. A row that is ALIVE already was
        inserted by an earlier attempt, whose response got lost, as ids are never used twice.
        """
        executors, fences = self._names.executors, self._names.fences
        return (
            "WITH locked AS MATERIALIZED (SELECT 1 WHERE $3::int4 IS NULL "
            f"OR pg_try_advisory_lock({LOCK_CLASS}, $3::int4)), "
            f"inserted AS (INSERT INTO {executors} AS e "
            "(executor_id, state, started_at_us, lease_expires_at_us, session_lock) "
            f"SELECT $1::text, 'ALIVE', {NOW_US}, {NOW_US} + $2::int8, $3::int4 FROM locked "
            "ON CONFLICT (executor_id) DO UPDATE SET session_lock = excluded.session_lock, "
            "lease_expires_at_us = excluded.lease_expires_at_us WHERE e.state = 'ALIVE' "
            f"RETURNING e.executor_id), fenced AS (INSERT INTO {fences} (executor_id) "
            "SELECT executor_id FROM inserted ON CONFLICT DO NOTHING) "
            "SELECT EXISTS (SELECT 1 FROM inserted) AS is_registered FROM locked"
        )

    def _look(self, *, renews: bool) -> str:
        """Return a statement: $2 to $4 runnable workflows, $5 lease in microseconds if renewed."""
        executors, workflows = self._names.executors, self._names.workflows
        renewed = (
            f"renewed AS (UPDATE {executors} SET lease_expires_at_us = {NOW_US} + $5::int8 "
            "WHERE executor_id = $1 AND state = 'ALIVE' RETURNING executor_id), "
        )
        own = "renewed" if renews else f"{executors} WHERE executor_id = $1 AND state = 'ALIVE'"
        orphans = f"EXISTS (SELECT 1 FROM {workflows} AS w WHERE {_RUNNABLE} AND w.executor_id"
        # A request without an owner has failed, and waits for its client.
        requests = f"EXISTS (SELECT 1 FROM {workflows} AS w WHERE {_RUNNABLE_REQUEST} "
        return (
            f"WITH {renewed if renews else ''}"
            "others AS MATERIALIZED (SELECT executor_id, lease_expires_at_us, session_lock "
            f"FROM {executors} WHERE state = 'ALIVE' AND executor_id <> $1::text), "
            "unlocked AS MATERIALIZED (SELECT executor_id, session_lock FROM others "
            f"WHERE session_lock IS NOT NULL AND session_lock NOT IN ({_HELD_KEYS})) "
            f"SELECT EXISTS (SELECT 1 FROM {own}) AS is_alive, "
            f"ARRAY(SELECT executor_id FROM others WHERE lease_expires_at_us < {NOW_US}) "
            "AS expired, "
            "ARRAY(SELECT executor_id FROM unlocked) AS unlocked_ids, "
            "ARRAY(SELECT session_lock FROM unlocked) AS unlocked_keys, "
            f"{orphans} IS NULL) OR {orphans} = ANY(ARRAY({self._free_owners()}))) "
            f"OR {requests} AND w.executor_id = ANY(ARRAY({self._free_owners()}))) AS has_orphans, "
            f"EXISTS (SELECT 1 FROM {self._names.fences} AS f WHERE {self._is_obsolete()}) "
            "AS has_obsolete_fences, "
            f"EXISTS (SELECT 1 FROM {executors} AS e WHERE {self._is_forgettable()}) "
            "AS has_forgettable"
        )

    def _declare_dead(self) -> str:
        """Return a statement: $1 executors, $2 the missing lock of each, or NULL for a lease.

        Invariant: lease and lock are checked again on the latest version of the executor's row,
        as it may have been renewed since.
        """
        return (
            f"UPDATE {self._names.executors} AS e SET state = 'DEAD', "
            f"lease_expires_at_us = least(e.lease_expires_at_us, {NOW_US}) "
            "FROM unnest($1::text[], $2::int4[]) AS missing(executor_id, session_lock) "
            "WHERE e.executor_id = missing.executor_id AND e.state = 'ALIVE' "
            f"AND (e.lease_expires_at_us < {NOW_US} OR e.session_lock = missing.session_lock "
            f"AND e.session_lock NOT IN ({_HELD_KEYS}))"
        )

    def _delete_fences(self) -> str:
        """Return a statement that deletes obsolete fences, except those that are locked.

        A transaction that holds a fence is about to commit. The next heartbeat deletes the fence.
        """
        return (
            f"DELETE FROM {self._names.fences} WHERE executor_id IN ("
            f"SELECT f.executor_id FROM {self._names.fences} AS f WHERE {self._is_obsolete()} "
            "ORDER BY f.executor_id FOR UPDATE SKIP LOCKED)"
        )

    def _is_obsolete(self) -> str:
        return (
            f"NOT EXISTS (SELECT 1 FROM {self._names.executors} AS e "
            "WHERE e.executor_id = f.executor_id AND e.state = 'ALIVE')"
        )

    def _free_owners(self) -> str:
        """Return a query of dead executors none of whose transactions may still commit."""
        return (
            f"SELECT e.executor_id FROM {self._names.executors} AS e WHERE e.state <> 'ALIVE' "
            f"AND NOT EXISTS (SELECT 1 FROM {self._names.fences} AS f "
            "WHERE f.executor_id = e.executor_id)"
        )

    def _take_over(self) -> str:
        """Return a statement: $2 to $4 runnable workflows, $5 limit, $6 true for suspects."""
        workflows, executors = self._names.workflows, self._names.executors
        crashed = (
            f"EXISTS (SELECT 1 FROM {executors} AS e "
            "WHERE e.executor_id = w.executor_id AND e.state = 'DEAD')"
        )
        entries = (
            f"((SELECT count(*) FROM {self._names.steps} AS s"
            " WHERE s.workflow_id = w.workflow_id)"
            f" + (SELECT count(*) FROM {workflows} AS c WHERE c.parent_id = w.workflow_id))"
        )
        one_more = _one_more("w.crashes")
        # In this order, as the entries of a workflow that never crashed need not be counted.
        crashes = (
            f"CASE WHEN NOT {crashed} THEN w.crashes WHEN w.crashes = 0 THEN 1 "
            f"WHEN {entries} > w.crashed_at_entry THEN 1 ELSE {one_more} END"
        )
        # In the order of the index for one owner, so that no more rows are read than taken.
        first = (
            f"SELECT w.workflow_id FROM {workflows} AS w WHERE w.executor_id {{owner}} "
            f"AND {{runnable}} AND EXISTS (SELECT 1 FROM me) AND ({crashes} >= 2) = $6::bool "
            "ORDER BY w.executor_id, {then}w.workflow_id LIMIT $5::int8 "
            "FOR UPDATE OF w SKIP LOCKED"
        )
        functions = partial(first.format, runnable=_RUNNABLE, then="w.fingerprint, ")
        requests = partial(first.format, runnable=_RUNNABLE_REQUEST, then="")
        attempts = _one_more("w.attempts")
        of_owner = {"owner": "= owners.executor_id"}
        return (
            f"WITH me AS MATERIALIZED ({self._names.fence('$1::text')}), "
            f"owners AS MATERIALIZED ({self._free_owners()}), "
            "taken AS MATERIALIZED (SELECT workflow_id, owner FROM (SELECT found.workflow_id, "
            "owners.executor_id AS owner FROM owners "
            f"CROSS JOIN LATERAL ({functions(**of_owner)}) AS found UNION ALL "
            "SELECT found.workflow_id, owners.executor_id FROM owners "
            f"CROSS JOIN LATERAL ({requests(**of_owner)}) AS found UNION ALL "
            f"SELECT workflow_id, NULL FROM ({functions(owner='IS NULL')}) AS released) AS free "
            "ORDER BY workflow_id LIMIT $5::int8) "
            f"UPDATE {workflows} AS w SET executor_id = $1, attempts = {attempts}, "
            f"crashes = {crashes}, updated_at_us = {NOW_US}, "
            f"crashed_at_entry = CASE WHEN {crashed} THEN {entries} ELSE w.crashed_at_entry END "
            f"FROM taken LEFT JOIN {executors} AS last ON last.executor_id = taken.owner "
            f"WHERE w.workflow_id = taken.workflow_id RETURNING {list_of(tables.workflows, 'w')}, "
            "CASE WHEN last.lease_expires_at_us IS NOT NULL THEN "
            f"greatest(0, ({NOW_US})::float8 - last.lease_expires_at_us) / 1e6 END AS free_seconds"
        )

    def _adopt(self) -> str:
        """Return a statement that inserts a DEAD row for each owner that has none.

        Such a row was deleted by hand. The query jumps from owner to owner along the index, so
        its time does not depend on the number of workflows.
        """
        workflows, executors = self._names.workflows, self._names.executors
        following = (
            f"SELECT w.executor_id FROM {workflows} AS w WHERE w.state = 'PENDING' "
            "AND w.executor_id > {after} ORDER BY w.executor_id LIMIT 1"
        )
        first = following.format(after="''")
        then = following.format(after="owners.executor_id")
        return (
            f"WITH RECURSIVE owners(executor_id) AS (({first}) UNION ALL "
            f"SELECT ({then}) FROM owners WHERE owners.executor_id IS NOT NULL) "
            f"INSERT INTO {executors} (executor_id, state, started_at_us) "
            f"SELECT o.executor_id, 'DEAD', {NOW_US} FROM owners AS o "
            "WHERE o.executor_id IS NOT NULL AND NOT EXISTS "
            f"(SELECT 1 FROM {executors} AS e WHERE e.executor_id = o.executor_id) "
            f"AND (EXISTS (SELECT 1 FROM {workflows} AS w "
            f"WHERE w.executor_id = o.executor_id AND {_PENDING}) "
            f"OR EXISTS (SELECT 1 FROM {workflows} AS w "
            f"WHERE w.executor_id = o.executor_id AND {_RECOVERABLE})) ON CONFLICT DO NOTHING"
        )


def _one_more(column: str) -> str:
    """Return an expression for a column plus one, which does not overflow."""
    return f"least({column}, {2**31 - 2}) + 1"
