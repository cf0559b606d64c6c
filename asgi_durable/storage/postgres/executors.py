"""Executors of a PostgreSQL database: their leases and locks, and taking over from dead ones.

An executor has a lease, by the database's clock. If its connection is a session on the server, it
also holds an advisory lock, which the server releases at once when the process dies. A process
that finds the lease expired or the lock missing declares the executor dead. Its workflows are free
once its fence is deleted: see ``PostgresNames.fence``.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from asgi_durable.storage.damaged_rows import DamagedRows
from asgi_durable.storage.postgres.connections.reconnecting import Connection
from asgi_durable.storage.postgres.connections.session import (
    PostgresSession,
    Registration,
    new_lock_key,
)
from asgi_durable.storage.postgres.executor_statements import REQUESTS, ExecutorStatements
from asgi_durable.storage.postgres.rows import PostgresNames, workflow_from
from asgi_durable.storage.protocol import Beat, Runnable
from asgi_durable.storage.records import DamagedRowError, TakenWorkflow

__all__ = ["PostgresExecutors"]

MICROSECONDS = 1_000_000
# A lease is renewed three times before it would expire, so two renewals may fail.
RENEWALS_PER_LEASE = 3
# A lock has to be missing for so long, as its owner may be connecting again.
CONFIRM_SECONDS = 0.5
# The interval of the search for workflows whose executor has no row.
ADOPTION_SECONDS = 60.0


class PostgresExecutors:
    """The executors of one schema.

    Args:
        session: The connection that holds their locks.
        names: The tables' names.
        damaged: Logs damaged rows.
    """

    def __init__(
        self, session: PostgresSession, names: PostgresNames, damaged: DamagedRows
    ) -> None:
        self._session = session
        self._damaged = damaged
        self._sql = ExecutorStatements(names)
        # Locks that are missing, and when that was first seen by the connection of a generation.
        self._missed: dict[tuple[str, int], float] = {}
        self._missed_generation = 0
        self._adopted_at = float("-inf")

    async def register(self, registration: Registration, lease_seconds: float) -> None:
        """See ``Executors.register``."""
        self._session.limit_statements(lease_seconds)
        lease_us = round(lease_seconds * MICROSECONDS)

        async def insert(connection: Connection) -> None:
            key = new_lock_key() if self._session.is_session else None
            # Invariant: the statement that inserts the row takes the lock, before others see it.
            values = (registration.executor_id, lease_us, key)
            while not (rows := await connection.fetch(self._sql.register, *values)):
                values = (*values[:2], new_lock_key())
            if not rows[0]["is_registered"]:
                msg = f"executor {registration.executor_id!r} exists"
                raise RuntimeError(msg)
            registration.lock_key = values[2]
            registration.renewed_at = time.monotonic()
            self._session.registrations[registration.executor_id] = registration

        await self._session.run(insert)

    async def beat(self, executor_id: str, lease_seconds: float, runnable: Runnable) -> Beat:
        """See ``Executors.beat``."""
        return await self._session.run(
            lambda connection: self._beat(connection, executor_id, lease_seconds, runnable)
        )

    async def is_missing(self, executor_id: str) -> bool:
        """See ``Executors.is_missing``."""
        row = await self._session.run(
            lambda connection: connection.fetch_one(self._sql.is_missing, executor_id)
        )
        return bool(row["is_missing"])

    async def take_over(
        self, executor_id: str, runnable: Runnable, limit: int, *, suspects: bool
    ) -> list[TakenWorkflow]:
        """See ``Executors.take_over``."""
        values = (*_lists_of(runnable), limit, suspects)
        rows = await self._session.run(
            lambda connection: connection.fetch(self._sql.take_over, executor_id, *values)
        )
        taken: list[TakenWorkflow] = []
        for row in rows:
            with contextlib.suppress(DamagedRowError):
                workflow = self._damaged.read(workflow_from, row)
                taken.append(TakenWorkflow(workflow=workflow, free_seconds=row["free_seconds"]))
        return sorted(taken, key=lambda one: one.workflow.workflow_id)

    async def retire(self, executor_id: str) -> None:
        """See ``Executors.retire``."""

        async def leave(connection: Connection) -> None:
            await connection.fetch(self._sql.leave, executor_id)
            # Invariant: the fence is deleted after the executor has left, when no transaction can
            # begin any more. The statement waits for those that have begun.
            await connection.fetch(self._sql.delete_own_fence, executor_id)
            await connection.fetch(self._sql.forget)
            await self._forget_own(connection, executor_id)

        await self._session.run(leave)

    async def _beat(
        self, connection: Connection, executor_id: str, lease_seconds: float, runnable: Runnable
    ) -> Beat:
        row = await self._look(connection, executor_id, lease_seconds, runnable)
        dead = self._find_dead(row)
        if dead or row["has_obsolete_fences"] or self._is_adoption_due():
            if dead:
                await connection.fetch(self._sql.declare_dead, *zip(*dead, strict=True))
            # Invariant: fences are deleted in a statement of their own, after executors are
            # declared dead, and before free workflows are searched again.
            await connection.fetch(self._sql.delete_fences)
            await connection.fetch(self._sql.adopt)
            row = await self._look(connection, executor_id, lease_seconds, runnable)
        if row["has_forgettable"]:
            await connection.fetch(self._sql.forget)
        if not row["is_alive"]:
            await self._forget_own(connection, executor_id)
        return Beat(is_alive=row["is_alive"], has_orphans=row["has_orphans"])

    async def _look(
        self, connection: Connection, executor_id: str, lease_seconds: float, runnable: Runnable
    ) -> Any:
        """Renew the lease if that is due, and read the state of all executors, in one statement."""
        lists = _lists_of(runnable)
        registration = self._session.registrations.get(executor_id)
        now = time.monotonic()
        if (
            registration is None
            or now < registration.renewed_at + lease_seconds / RENEWALS_PER_LEASE
        ):
            return await connection.fetch_one(self._sql.look, executor_id, *lists)
        lease_us = round(lease_seconds * MICROSECONDS)
        row = await connection.fetch_one(self._sql.renew_and_look, executor_id, *lists, lease_us)
        registration.renewed_at = now
        return row

    def _find_dead(self, row: Any) -> list[tuple[str, int | None]]:
        """Return executors to declare dead, each with its missing lock, or ``None`` for a lease."""
        if self._missed_generation != self._session.generation:
            self._missed_generation = self._session.generation
            self._missed = {}
        missed = list(zip(row["unlocked_ids"], row["unlocked_keys"], strict=True))
        now = time.monotonic()
        self._missed = {lock: self._missed.get(lock, now) for lock in missed}
        confirmed = [lock for lock in missed if self._missed[lock] <= now - CONFIRM_SECONDS]
        return [*((executor_id, None) for executor_id in row["expired"]), *confirmed]

    def _is_adoption_due(self) -> bool:
        now = time.monotonic()
        if now < self._adopted_at + ADOPTION_SECONDS:
            return False
        self._adopted_at = now
        return True

    async def _forget_own(self, connection: Connection, executor_id: str) -> None:
        registration = self._session.registrations.pop(executor_id, None)
        if registration is not None:
            await self._session.unlock(connection, registration)


def _lists_of(runnable: Runnable) -> tuple[list[str], list[str], list[str]]:
    requests = [REQUESTS] if runnable.requests else []
    excluded_ids = [*runnable.excluded_ids, *requests]
    return (list(runnable.names), list(runnable.bound_names), excluded_ids)
