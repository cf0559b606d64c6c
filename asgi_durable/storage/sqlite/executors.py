"""The living executors of a SQLite file, and taking over the workflows of dead ones.

Each executor has a small file beside the database. While its process exists it holds a lock on
this file, which the kernel releases when the process dies. The file's modification time is the end
of the lease. So a heartbeat writes nothing into the database, and a long transaction of another
process cannot prevent the renewal of a lease.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from asgi_durable.storage import tables
from asgi_durable.storage.damaged_rows import DamagedRows
from asgi_durable.storage.protocol import Beat, Runnable
from asgi_durable.storage.records import DamagedRowError, TakenWorkflow
from asgi_durable.storage.sqlite.file import SQLiteFile, write_transaction
from asgi_durable.storage.sqlite.locks import ProcessLock
from asgi_durable.storage.sqlite.rows import SELECT_WORKFLOW, insert, json_list, workflow_from

__all__ = ["LIVING", "SQLiteExecutors"]

_EXECUTORS, _WORKFLOWS, _STEPS = (
    tables.executors.name,
    tables.workflows.name,
    tables.steps.name,
)

# The system's errors for a name that no file can have.
_INVALID_NAME = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})

LIVING = f"SELECT executor_id FROM {_EXECUTORS} WHERE state = 'ALIVE'"

_FIND_LIVING = f"{LIVING} AND executor_id = ?"
_LIST = f"SELECT executor_id, state FROM {_EXECUTORS}"
_LIST_ENDS = f"SELECT executor_id, lease_expires_at_us FROM {_EXECUTORS}"
_END = (
    f"UPDATE {_EXECUTORS} SET state = ?, lease_expires_at_us = ? "
    "WHERE executor_id = ? AND state = 'ALIVE'"
)
_FORGET = (
    f"DELETE FROM {_EXECUTORS} WHERE state <> 'ALIVE' AND NOT EXISTS "
    f"(SELECT 1 FROM {_WORKFLOWS} AS w WHERE w.executor_id = {_EXECUTORS}.executor_id"
    " AND w.fingerprint IS NULL AND w.state = 'PENDING') AND NOT EXISTS "
    f"(SELECT 1 FROM {_WORKFLOWS} AS r WHERE r.executor_id = {_EXECUTORS}.executor_id"
    " AND r.fingerprint IS NOT NULL AND r.input IS NOT NULL AND r.state = 'PENDING')"
)
# Workflows, with this dead owner or without one, that a process can run.
_FUNCTIONS = (
    "executor_id IS :owner AND fingerprint IS NULL AND state = 'PENDING' "
    "AND name IN (SELECT value FROM json_each(:names)) "
    "AND (parent_id IS NULL OR name NOT IN (SELECT value FROM json_each(:bound))) "
    "AND typeof(workflow_id) = 'text' "
    "AND workflow_id NOT IN (SELECT value FROM json_each(:excluded))"
)
# Requests of this dead owner. A request without an owner has failed and waits for its client.
_REQUESTS = (
    "executor_id = :owner AND fingerprint IS NOT NULL AND input IS NOT NULL "
    "AND state = 'PENDING' AND :requests AND typeof(workflow_id) = 'text' "
    "AND workflow_id NOT IN (SELECT value FROM json_each(:excluded))"
)
_HAS_RUNNABLE = (
    f"SELECT EXISTS (SELECT 1 FROM {_WORKFLOWS} WHERE {_FUNCTIONS}) "
    f"OR EXISTS (SELECT 1 FROM {_WORKFLOWS} WHERE {_REQUESTS})"
)
_ENTRIES = (
    f"(SELECT count(*) FROM {_STEPS} AS s WHERE s.workflow_id = {_WORKFLOWS}.workflow_id)"
    f" + (SELECT count(*) FROM {_WORKFLOWS} AS c WHERE c.parent_id = {_WORKFLOWS}.workflow_id)"
)
_CRASHES = (
    f"CASE WHEN NOT :crashed THEN crashes WHEN {_ENTRIES} > crashed_at_entry THEN 1 "
    "ELSE crashes + 1 END"
)
_SELECT_RUNNABLE = [
    f"SELECT workflow_id, {_CRASHES}, CASE WHEN :crashed THEN {_ENTRIES} ELSE crashed_at_entry END "
    f"FROM {_WORKFLOWS} WHERE {runnable} AND (({_CRASHES}) >= 2) = :suspects "
    "ORDER BY workflow_id LIMIT :limit"
    for runnable in (_FUNCTIONS, _REQUESTS)
]
_TAKE = (
    f"UPDATE {_WORKFLOWS} SET executor_id = :executor_id, attempts = attempts + 1, "
    "crashes = :crashes, crashed_at_entry = :entries, updated_at_us = :now "
    "WHERE workflow_id = :workflow_id"
)
_FIND_TAKEN = (
    f"{SELECT_WORKFLOW} WHERE workflow_id IN (SELECT value FROM json_each(?)) ORDER BY workflow_id"
)


class SQLiteExecutors:
    """The executors of one database file.

    Args:
        file: The database.
        writer: The connection that writes. :meth:`look_around` and :meth:`is_missing` are passed
            another one, and run on another thread.
        damaged: Logs damaged rows.
    """

    def __init__(self, file: SQLiteFile, writer: sqlite3.Connection, damaged: DamagedRows) -> None:
        self._file = file
        self._writer = writer
        self._damaged = damaged
        # Damaged workflows, which are not taken over again.
        self._set_aside: set[str] = set()
        self._own: dict[str, ProcessLock] = {}
        # Executors whose lease was found over once.
        self._overdue: set[str] = set()

    def register(self, executor_id: str, lease_seconds: float) -> None:
        """See ``Executors.register``."""
        lock = self._lock(executor_id)
        # Invariant: the file is locked and has its time before the row exists; otherwise others
        # would find the executor dead.
        if not lock.try_acquire():
            msg = f"executor {executor_id!r} exists"
            raise ValueError(msg)
        self._own[executor_id] = lock
        _set_lease(lock, lease_seconds)
        with write_transaction(self._writer):
            self._writer.execute(_FORGET)
            row = (executor_id, "ALIVE", _now_us(), None, None)
            self._writer.execute(insert(tables.executors), row)

    def renew(self, executor_id: str, lease_seconds: float) -> None:
        """Extend the lease."""
        lock = self._own.get(executor_id)
        if lock is not None:
            _set_lease(lock, lease_seconds)

    def look_around(
        self, reader: sqlite3.Connection, executor_id: str, runnable: Runnable
    ) -> tuple[Beat, list[str]]:
        """Return the result of a heartbeat, and the other executors whose process has ended."""
        states = self._states(reader)
        living = [i for i, state in states.items() if state == "ALIVE" and i != executor_id]
        ended = [other for other in living if self._has_ended(other)]
        free = [i for i, state in states.items() if state != "ALIVE"]
        beat = Beat(
            is_alive=states.get(executor_id) == "ALIVE",
            has_orphans=any(self._has_runnable(reader, owner, runnable) for owner in (None, *free)),
        )
        return beat, ended

    def is_missing(self, reader: sqlite3.Connection, executor_id: str) -> bool:
        """See ``Executors.is_missing``."""
        row = reader.execute(_FIND_LIVING, (executor_id,)).fetchone()
        if row is None:
            return True
        lock = self._own.get(executor_id) or self._lock(executor_id)
        return _is_lease_over(lock) or not (lock.is_mine or lock.is_held())

    def declare_dead(self, executor_ids: Sequence[str]) -> None:
        """Declare executors dead, unless they have renewed their lease since."""
        with write_transaction(self._writer):
            for executor_id in executor_ids:
                if self._has_ended(executor_id):
                    lock = self._lock_of_other(executor_id)
                    ended_at_us = _lease_end_us(lock) if lock is not None else _now_us()
                    self._writer.execute(_END, ("DEAD", ended_at_us, executor_id))
        for executor_id in executor_ids:
            self._overdue.discard(executor_id)
            lock = self._lock_of_other(executor_id)
            if lock is not None and not lock.is_held():
                lock.remove()

    def retire(self, executor_id: str) -> None:
        """See ``Executors.retire``."""
        with write_transaction(self._writer):
            self._writer.execute(_END, ("RELEASED", _now_us(), executor_id))
            self._writer.execute(_FORGET)
        self._release(executor_id)

    def release_all(self) -> None:
        """Release all locks that are still held; others then find these executors dead."""
        for executor_id in list(self._own):
            self._release(executor_id)

    def take_over(
        self, executor_id: str, runnable: Runnable, limit: int, *, suspects: bool
    ) -> list[TakenWorkflow]:
        """See ``Executors.take_over``."""
        with write_transaction(self._writer):
            states = self._states(self._writer)
            if states.get(executor_id) != "ALIVE":
                return []
            wanted = {"suspects": suspects, "limit": limit}
            # Sorted by id, which is the first value and unique.
            found = sorted(self._find_free(states, runnable, wanted))[:limit]
            # Invariant: rows are read before they are taken. A damaged one is not changed.
            sound = self._sound([row[0] for row in found])
            found = [row for row in found if row[0] in sound]
            now = _now_us()
            self._writer.executemany(
                _TAKE,
                [
                    {
                        "executor_id": executor_id,
                        "workflow_id": workflow_id,
                        "crashes": crashes,
                        "entries": entries,
                        "now": now,
                    }
                    for workflow_id, crashes, entries, _ in found
                ],
            )
            taken = self._writer.execute(_FIND_TAKEN, (json_list(row[0] for row in found),))
            return [
                TakenWorkflow(workflow=workflow_from(row), free_seconds=_seconds(ended_at_us, now))
                for row, (*_, ended_at_us) in zip(taken, found, strict=True)
            ]

    def _find_free(
        self, states: dict[str, str], runnable: Runnable, wanted: dict[str, Any]
    ) -> list[tuple[Any, ...]]:
        """Return free workflows: their id, crashes, entries, and when their owner's lease ended."""
        free = [i for i, state in states.items() if state != "ALIVE"]
        ends = dict(self._writer.execute(_LIST_ENDS).fetchall())
        found: list[tuple[Any, ...]] = []
        for owner in (None, *free):
            crashed = owner is not None and states[owner] == "DEAD"
            parameters = self._parameters(owner, runnable) | wanted | {"crashed": crashed}
            for select in _SELECT_RUNNABLE:
                rows = self._writer.execute(select, parameters).fetchall()
                sound = set(self._damaged.sound_ids(_WORKFLOWS, (row[0] for row in rows)))
                found += [(*row, ends.get(owner)) for row in rows if row[0] in sound]
        return found

    def _has_ended(self, executor_id: str) -> bool:
        """Return True if an executor's process is dead, or its lease was over twice in a row.

        Twice, because after the clock was set forward a living executor renews it in between.
        """
        lock = self._own.get(executor_id) or self._lock_of_other(executor_id)
        if lock is None or (not lock.is_mine and not lock.is_held()):
            return True
        if not _is_lease_over(lock):
            self._overdue.discard(executor_id)
            return False
        was_overdue = executor_id in self._overdue
        self._overdue.add(executor_id)
        return was_overdue

    def _states(self, connection: sqlite3.Connection) -> dict[str, str]:
        """Return the executors' states, by their ids."""
        rows = connection.execute(_LIST).fetchall()
        sound = set(self._damaged.sound_ids(_EXECUTORS, (row[0] for row in rows)))
        return {executor_id: state for executor_id, state in rows if executor_id in sound}

    def _sound(self, workflow_ids: Sequence[str]) -> set[str]:
        """Return the workflows whose rows can be read; the others are ignored from now on."""
        sound: set[str] = set()
        for row in self._writer.execute(_FIND_TAKEN, (json_list(workflow_ids),)):
            try:
                sound.add(self._damaged.read(workflow_from, row).workflow_id)
            except DamagedRowError:
                self._set_aside.add(row[0])
        return sound

    def _has_runnable(
        self, reader: sqlite3.Connection, owner: str | None, runnable: Runnable
    ) -> bool:
        found = reader.execute(_HAS_RUNNABLE, self._parameters(owner, runnable)).fetchone()
        return bool(found[0])

    def _parameters(self, owner: str | None, runnable: Runnable) -> dict[str, Any]:
        return {
            "owner": owner,
            "names": json_list(runnable.names),
            "bound": json_list(runnable.bound_names),
            "excluded": json_list(runnable.excluded_ids | self._set_aside),
            "requests": runnable.requests,
        }

    def _lock_of_other(self, executor_id: str) -> ProcessLock | None:
        """Return an executor's lock, ``None`` if its id is damaged: no file can have that name."""
        try:
            lock = self._lock(executor_id)
            lock.path.stat()
        except FileNotFoundError:
            return lock
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _INVALID_NAME:
                return lock
            self._damaged.set_aside(DamagedRowError(_EXECUTORS, executor_id, str(error)))
            return None
        return lock

    def _lock(self, executor_id: str) -> ProcessLock:
        return ProcessLock(self._file.beside(f"executor-{executor_id}"), database=self._file.path)

    def _release(self, executor_id: str) -> None:
        lock = self._own.pop(executor_id, None)
        if lock is not None:
            lock.release()
            lock.remove()


def _set_lease(lock: ProcessLock, lease_seconds: float) -> None:
    ends_at = time.time() + lease_seconds
    # If the file is deleted, the others find the executor dead, and it learns so by its next beat.
    with contextlib.suppress(FileNotFoundError):
        os.utime(lock.path, (ends_at, ends_at))


def _is_lease_over(lock: ProcessLock) -> bool:
    try:
        return lock.path.stat().st_mtime < time.time()
    except OSError:
        return True


def _lease_end_us(lock: ProcessLock) -> int:
    """Return the time at which an executor's lease ended, at the latest now."""
    now_us = _now_us()
    try:
        return min(now_us, lock.path.stat().st_mtime_ns // 1000)
    except OSError:
        return now_us


def _seconds(ended_at_us: object, now_us: int) -> float | None:
    # At least 0, as the clock may have been set back.
    return max(0, now_us - ended_at_us) / 1e6 if isinstance(ended_at_us, int) else None


def _now_us() -> int:
    return time.time_ns() // 1000
