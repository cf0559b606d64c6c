"""The one connection that writes the step log into a SQLite file.

Everything here runs on one thread, through the driver: SQLAlchemy's insert costs about ten
times as much.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from asgi_durable.storage import tables
from asgi_durable.storage.records import StepRecord, WorkflowRecord, WorkflowState
from asgi_durable.storage.schema import pending_migrations
from asgi_durable.storage.sqlite_errors import storage_error
from asgi_durable.storage.sqlite_file import SQLiteFile
from asgi_durable.storage.sqlite_resume import drop_trailing_failures
from asgi_durable.storage.writes import (
    DONE,
    FENCED,
    ClaimRequest,
    FinishWorkflow,
    ForgetRequest,
    Outcome,
    OutcomeKind,
    RecordStep,
    ResumeWorkflow,
    StartWorkflow,
    Write,
)

__all__ = ["SQLiteWriter"]


def _columns(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.columns)


def _insert(table: Table) -> str:
    columns = _columns(table)
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({marks})"


# Both ends of a claim: the row must be pending and the executor's own.
_OWNED = "workflow_id = ? AND executor_id = ? AND state = 'PENDING'"

INSERT_WORKFLOW = f"{_insert(tables.workflows)} ON CONFLICT DO NOTHING"
INSERT_STEP = (
    f"INSERT INTO {tables.steps.name} ({', '.join(_columns(tables.steps))}) "
    f"SELECT ?, ?, ?, ?, ?, ?, ? FROM {tables.workflows.name} WHERE {_OWNED} "
    "ON CONFLICT DO NOTHING"
)
FINISH_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET state = ?, output = ?, error = ?, updated_at_us = ? "
    f"WHERE {_OWNED}"
)
INSERT_RESPONSE = _insert(tables.responses).replace("INSERT", "INSERT OR REPLACE", 1)
SELECT_WORKFLOW = (
    f"SELECT {', '.join(_columns(tables.workflows))} FROM {tables.workflows.name} "
    "WHERE workflow_id = ?"
)
SELECT_STEP = (
    f"SELECT {', '.join(_columns(tables.steps))} FROM {tables.steps.name} "
    "WHERE workflow_id = ? AND step_number = ?"
)
TAKE_REQUEST = (
    f"UPDATE {tables.workflows.name} SET executor_id = ?, attempts = attempts + 1, "
    "request_id = ?, updated_at_us = ? WHERE workflow_id = ?"
)
RESUME_WORKFLOW = (
    f"UPDATE {tables.workflows.name} SET attempts = attempts + 1, updated_at_us = ? WHERE {_OWNED}"
)
FORGET_REQUEST = (
    f"DELETE FROM {tables.workflows.name} WHERE {_OWNED} "
    f"AND NOT EXISTS (SELECT 1 FROM {tables.steps.name} AS step"
    f" WHERE step.workflow_id = {tables.workflows.name}.workflow_id) "
    f"AND NOT EXISTS (SELECT 1 FROM {tables.workflows.name} AS child"
    f" WHERE child.parent_id = {tables.workflows.name}.workflow_id)"
)
IS_ALIVE = f"SELECT 1 FROM {tables.executors.name} WHERE executor_id = ?"

_workflow_fields = attrgetter(*_columns(tables.workflows))
_STATE = _columns(tables.workflows).index("state")
_AWAITED = _columns(tables.workflows).index("awaited")
_step_values = attrgetter(*_columns(tables.steps))
_response_values = attrgetter(*_columns(tables.responses))


# What the driver raises for a row that it cannot bind or the database cannot hold.
_BAD_ROW = (sqlite3.Error, OverflowError, ValueError)


class _NotAllAppliedError(Exception):
    """A write among many did not apply; which one, only applying them singly can tell."""


class SQLiteWriter:
    """Applies batches of writes for one executor."""

    def __init__(self, file: SQLiteFile, executor_id: str) -> None:
        self._file = file
        self._executor_id = executor_id
        self._connection = file.connect()
        self._cursor = self._connection.cursor()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def migrate(self) -> None:
        """Create the tables, or bring them up to date, in one transaction."""
        dialect = SQLiteDialect_pysqlite()
        version = tables.schema_version.name
        with self._transaction():
            self._cursor.execute(f"CREATE TABLE IF NOT EXISTS {version} (version INTEGER NOT NULL)")
            found = self._cursor.execute(f"SELECT max(version) FROM {version}").fetchone()[0] or 0
            missing = pending_migrations(found, str(self._file.path))
            for migration in missing:
                for statement in migration(dialect):
                    self._cursor.execute(statement)
            if missing:
                self._cursor.execute(f"DELETE FROM {version}")
                self._cursor.execute(f"INSERT INTO {version} VALUES (?)", (found + len(missing),))

    def take_over(self) -> None:
        """Declare every other executor dead, and take their functions' workflows.

        The file lock says that they are: one process at a time has the file.
        """
        now = time.time_ns() // 1000
        with self._transaction():
            self._cursor.execute(f"DELETE FROM {tables.executors.name}")
            self._cursor.execute(_insert(tables.executors), (self._executor_id, now))
            self._cursor.execute(
                f"UPDATE {tables.workflows.name} SET executor_id = ? "
                "WHERE state = 'PENDING' AND fingerprint IS NULL",
                (self._executor_id,),
            )
            self._cursor.execute(
                f"UPDATE {tables.workflows.name} SET executor_id = NULL "
                "WHERE state = 'PENDING' AND fingerprint IS NOT NULL"
            )

    def retire(self) -> None:
        """Take the executor out of the living."""
        with self._transaction():
            self._cursor.execute(
                f"DELETE FROM {tables.executors.name} WHERE executor_id = ?", (self._executor_id,)
            )

    def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        """Apply a batch in one transaction; see ``StepLog.commit``."""
        try:
            return self._commit(batch, self._apply_together)
        except (_NotAllAppliedError, *_BAD_ROW) as error:
            self._raise_failure(error)
        try:
            return self._commit(batch, self._apply_singly)
        except sqlite3.Error as error:
            self._raise_failure(error)
            raise

    def _commit(
        self, batch: Sequence[Write], apply: Callable[[Sequence[Write]], list[Outcome]]
    ) -> list[Outcome]:
        with self._transaction():
            return apply(batch) if self._is_alive() else [FENCED] * len(batch)

    def _raise_failure(self, error: Exception) -> None:
        """Raise the library's error if the database failed; return if a row is to blame."""
        failure = storage_error(error, str(self._file.path))
        if failure is not None:
            raise failure from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a deferred transaction that turns to writing fails at once where it
        # meets another writer, without waiting for the busy timeout.
        self._cursor.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._cursor.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._cursor.execute("ROLLBACK")
            raise

    def _is_alive(self) -> bool:
        # Invariant: checked inside the transaction that writes. An executor that was
        # declared dead meanwhile changes nothing any more.
        return self._cursor.execute(IS_ALIVE, (self._executor_id,)).fetchone() is not None

    def _apply_together(self, batch: Sequence[Write]) -> list[Outcome]:
        outcomes = [DONE] * len(batch)
        by_kind: dict[type, list[Any]] = {}
        for index, write in enumerate(batch):
            if isinstance(write, (ClaimRequest, ResumeWorkflow, ForgetRequest)):
                outcomes[index] = self._apply_alone(write)
            else:
                by_kind.setdefault(type(write), []).append(write)
        # Invariant: starts before steps before ends. Within one batch a workflow's writes
        # were submitted in this order, and each needs the row that the one before left.
        self._execute_all(
            INSERT_WORKFLOW, [_workflow_values(w.workflow) for w in by_kind.get(StartWorkflow, ())]
        )
        self._execute_all(INSERT_STEP, map(_step_parameters, by_kind.get(RecordStep, ())))
        ends = by_kind.get(FinishWorkflow, ())
        self._execute_all(FINISH_WORKFLOW, map(_finish_parameters, ends))
        answers = [_response_values(end.response) for end in ends if end.response is not None]
        self._execute_all(INSERT_RESPONSE, answers)
        return outcomes

    def _apply_singly(self, batch: Sequence[Write]) -> list[Outcome]:
        return [self._apply_alone(write) for write in batch]

    def _execute_all(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        parameters = list(rows)
        if parameters:
            self._cursor.executemany(statement, parameters)
            if self._cursor.rowcount != len(parameters):
                raise _NotAllAppliedError

    def _apply_alone(self, write: Write) -> Outcome:
        self._cursor.execute("SAVEPOINT alone")
        try:
            outcome = _APPLY[type(write)](self, write)
        except _BAD_ROW as error:
            if storage_error(error, str(self._file.path)) is not None:
                raise
            self._cursor.execute("ROLLBACK TO alone")
            outcome = Outcome(OutcomeKind.REJECTED, error=error)
        self._cursor.execute("RELEASE alone")
        return outcome

    def _start(self, write: StartWorkflow) -> Outcome:
        if self._changes(INSERT_WORKFLOW, _workflow_values(write.workflow)):
            return DONE
        existing = self._workflow(write.workflow.workflow_id)
        if existing is not None and _is_the_same_start(existing, write.workflow):
            return DONE
        return Outcome(OutcomeKind.CONFLICT, existing=existing)

    def _claim(self, write: ClaimRequest) -> Outcome:
        wanted = write.workflow
        if self._changes(INSERT_WORKFLOW, _workflow_values(wanted)):
            return DONE
        existing = self._workflow(wanted.workflow_id)
        if existing is None or not self._may_take(existing, wanted):
            return Outcome(OutcomeKind.CONFLICT, existing=existing)
        self._cursor.execute(
            TAKE_REQUEST,
            (self._executor_id, wanted.request_id, wanted.updated_at_us, wanted.workflow_id),
        )
        drop_trailing_failures(self._cursor, wanted.workflow_id, self._executor_id)
        return Outcome(OutcomeKind.RESUMED, existing=existing)

    def _may_take(self, existing: WorkflowRecord, wanted: WorkflowRecord) -> bool:
        free = existing.executor_id in (None, self._executor_id)
        return free and not existing.is_final and existing.fingerprint == wanted.fingerprint

    def _record(self, write: RecordStep) -> Outcome:
        if self._changes(INSERT_STEP, _step_parameters(write)):
            return DONE
        step = write.step
        found = self._cursor.execute(SELECT_STEP, (step.workflow_id, step.step_number)).fetchone()
        if found is None:
            return FENCED
        # The same record is this very write, whose answer got lost.
        same = StepRecord(**dict(zip(_columns(tables.steps), found, strict=True))) == step
        return DONE if same else Outcome(OutcomeKind.CONFLICT)

    def _resume(self, write: ResumeWorkflow) -> Outcome:
        parameters = (write.resumed_at_us, write.workflow_id, write.executor_id)
        return DONE if self._changes(RESUME_WORKFLOW, parameters) else FENCED

    def _finish(self, write: FinishWorkflow) -> Outcome:
        if not self._changes(FINISH_WORKFLOW, _finish_parameters(write)):
            existing = self._workflow(write.workflow_id)
            return DONE if existing is not None and _is_the_same_end(existing, write) else FENCED
        if write.response is not None:
            self._cursor.execute(INSERT_RESPONSE, _response_values(write.response))
        return DONE

    def _forget(self, write: ForgetRequest) -> Outcome:
        self._cursor.execute(FORGET_REQUEST, (write.workflow_id, write.executor_id))
        return DONE

    def _changes(self, statement: str, parameters: tuple[Any, ...]) -> bool:
        return self._cursor.execute(statement, parameters).rowcount == 1

    def _workflow(self, workflow_id: str) -> WorkflowRecord | None:
        found = self._cursor.execute(SELECT_WORKFLOW, (workflow_id,)).fetchone()
        if found is None:
            return None
        row = dict(zip(_columns(tables.workflows), found, strict=True))
        row["state"], row["awaited"] = WorkflowState(row["state"]), bool(row["awaited"])
        return WorkflowRecord(**row)


_APPLY: dict[type, Callable[[SQLiteWriter, Any], Outcome]] = {
    StartWorkflow: SQLiteWriter._start,
    ClaimRequest: SQLiteWriter._claim,
    RecordStep: SQLiteWriter._record,
    ResumeWorkflow: SQLiteWriter._resume,
    FinishWorkflow: SQLiteWriter._finish,
    ForgetRequest: SQLiteWriter._forget,
}


def _workflow_values(workflow: WorkflowRecord) -> tuple[Any, ...]:
    # Plain strings and integers: the driver looks for an adapter for any subclass of them.
    values = list(_workflow_fields(workflow))
    values[_STATE] = workflow.state.value
    values[_AWAITED] = int(workflow.awaited)
    return tuple(values)


def _step_parameters(write: RecordStep) -> tuple[Any, ...]:
    return (*_step_values(write.step), write.step.workflow_id, write.executor_id)


def _finish_parameters(write: FinishWorkflow) -> tuple[Any, ...]:
    return (
        write.state.value,
        write.output,
        write.error,
        write.finished_at_us,
        write.workflow_id,
        write.executor_id,
    )


def _is_the_same_start(existing: WorkflowRecord, wanted: WorkflowRecord) -> bool:
    """A start whose answer got lost; ids of one executor differ in their microsecond."""
    return (existing.executor_id, existing.created_at_us, existing.input) == (
        wanted.executor_id,
        wanted.created_at_us,
        wanted.input,
    )


def _is_the_same_end(existing: WorkflowRecord, write: FinishWorkflow) -> bool:
    return (existing.state, existing.output, existing.error, existing.updated_at_us) == (
        write.state,
        write.output,
        write.error,
        write.finished_at_us,
    )
