"""The one connection that writes the step log into a SQLite file.

Everything here runs on one thread, through the driver: SQLAlchemy's insert costs about ten
times as much.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from asgi_durable.storage.records import ResponseRecord, StepRecord, WorkflowRecord
from asgi_durable.storage.sqlite.commits.called_workflows import (
    cancel_workflow,
    drop_trailing_failures,
)
from asgi_durable.storage.sqlite.commits.write_statements import (
    CLEAR_CRASH_COUNT,
    COMPLETE_STEP,
    CUT_CHUNKS,
    DELETE_CHUNKS,
    FIND_CHUNK,
    FIND_RESPONSE,
    FIND_STEP,
    FIND_WORKFLOW,
    FINISH_WORKFLOW,
    FORGET_REQUEST,
    INSERT_CHUNK,
    INSERT_STEP,
    INSERT_WORKFLOW,
    RELEASE_WORKFLOW,
    RESUME_WORKFLOW,
    SET_FINGERPRINT,
    SET_LAST_SPAN,
    STEPS_AT_ONCE,
    TAKE_REQUEST,
    completion_parameters,
    finish_parameters,
    insert_steps,
    owned_step_values,
    step_parameters,
)
from asgi_durable.storage.sqlite.errors import storage_error
from asgi_durable.storage.sqlite.executors import LIVING
from asgi_durable.storage.sqlite.file import SQLiteFile, write_transaction
from asgi_durable.storage.sqlite.rows import (
    INSERT_RESPONSE,
    chunk_from,
    chunk_values,
    response_from,
    response_values,
    step_from,
    text_or_bytes,
    workflow_from,
    workflow_values,
)
from asgi_durable.storage.write_order import is_one_group
from asgi_durable.storage.writes import (
    DONE,
    FENCED,
    CancelWorkflow,
    ClaimRequest,
    ClearCrashCount,
    CompleteStep,
    FinishWorkflow,
    ForgetRequest,
    Outcome,
    OutcomeKind,
    RecordChunk,
    RecordStep,
    ReleaseWorkflow,
    ResumeWorkflow,
    SetFingerprint,
    SetLastSpan,
    StartWorkflow,
    Write,
    executor_of,
    is_same_end,
    is_same_start,
    outcome_of_refused_step,
)

__all__ = ["SQLiteWriter"]


# The driver raises these for values that it cannot bind or the database cannot hold.
_BAD_ROW = (sqlite3.Error, OverflowError, ValueError)


class _NotAllAppliedError(Exception):
    """One write of several was not applied; they have to be applied singly to find it."""


class SQLiteWriter:
    """Commits batches of writes, on the connection that writes."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file
        self.connection = file.connect()
        self.connection.text_factory = text_or_bytes
        self._cursor = self.connection.cursor()
        # The living executors, as read in the open transaction.
        self._living: frozenset[str | None] = frozenset()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        """Apply a batch in one transaction; see ``StepLog.commit``."""
        if not is_one_group(batch):
            return self._commit_singly(batch)
        try:
            return self._commit(batch, self._apply_together)
        except (_NotAllAppliedError, *_BAD_ROW) as error:
            self._raise_failure(error)
        return self._commit_singly(batch)

    def _commit_singly(self, batch: Sequence[Write]) -> list[Outcome]:
        try:
            return self._commit(batch, self._apply_singly)
        except sqlite3.Error as error:
            self._raise_failure(error)
            raise

    def _commit(
        self, batch: Sequence[Write], apply: Callable[[Sequence[Write]], list[Outcome]]
    ) -> list[Outcome]:
        with write_transaction(self.connection):
            # Invariant: read in the transaction that writes, so an executor that was declared
            # dead before writes nothing.
            self._living = frozenset(row[0] for row in self._cursor.execute(LIVING))
            allowed = [write for write in batch if executor_of(write) in self._living]
            outcomes = iter(apply(allowed))
            return [
                next(outcomes) if executor_of(write) in self._living else FENCED for write in batch
            ]

    def _raise_failure(self, error: Exception) -> None:
        """Raise the library's error if the database failed; return if a write was at fault."""
        failure = storage_error(error, str(self._file.path))
        if failure is not None:
            raise failure from error

    def _apply_together(self, batch: Sequence[Write]) -> list[Outcome]:
        by_kind: dict[type, list[Any]] = {}
        for write in batch:
            by_kind.setdefault(type(write), []).append(write)
        # Invariant: starts, then steps, then ends, then releases. A workflow's writes were
        # submitted in this order, and each needs the row as the one before left it.
        alone = {
            id(write): self._apply_alone(write)
            for kind in (ClaimRequest, ResumeWorkflow, SetFingerprint, SetLastSpan)
            for write in by_kind.get(kind, ())
        }
        self._execute_all(
            INSERT_WORKFLOW, [workflow_values(w.workflow) for w in by_kind.get(StartWorkflow, ())]
        )
        self._insert_steps(by_kind.get(RecordStep, ()))
        completions = by_kind.get(CompleteStep, ())
        self._execute_all(COMPLETE_STEP, map(completion_parameters, completions))
        for write in by_kind.get(RecordChunk, ()):
            if self._record_chunk(write) is not DONE:
                raise _NotAllAppliedError
        ends = by_kind.get(FinishWorkflow, ())
        self._execute_all(FINISH_WORKFLOW, map(finish_parameters, ends))
        responses = [response_values(end.response) for end in ends if end.response is not None]
        self._execute_all(INSERT_RESPONSE, responses)
        starts = [workflow_values(start) for end in ends for start in end.starts]
        self._execute_all(INSERT_WORKFLOW, starts)
        for kind in (ClearCrashCount, ReleaseWorkflow, ForgetRequest):
            for write in by_kind.get(kind, ()):
                self._apply_alone(write)
        for write in by_kind.get(CancelWorkflow, ()):
            alone[id(write)] = self._apply_alone(write)
        return [alone.get(id(write), DONE) for write in batch]

    def _apply_singly(self, batch: Sequence[Write]) -> list[Outcome]:
        return [self._apply_alone(write) for write in batch]

    def _execute_all(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        parameters = list(rows)
        if parameters:
            self._cursor.executemany(statement, parameters)
            if self._cursor.rowcount != len(parameters):
                raise _NotAllAppliedError

    def _insert_steps(self, writes: Sequence[RecordStep]) -> None:
        """Insert many rows by each statement, as the driver releases the GIL for each statement."""
        done = 0
        for count in STEPS_AT_ONCE:
            while done + count <= len(writes):
                rows = map(owned_step_values, writes[done : done + count])
                self._cursor.execute(insert_steps(count), tuple(chain.from_iterable(rows)))
                if self._cursor.rowcount != count:
                    raise _NotAllAppliedError
                done += count
        self._execute_all(INSERT_STEP, map(step_parameters, writes[done:]))

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
        if self._changes(INSERT_WORKFLOW, workflow_values(write.workflow)):
            return DONE
        existing = self._workflow(write.workflow.workflow_id)
        if existing is not None and is_same_start(existing, write.workflow):
            return DONE
        return Outcome(OutcomeKind.CONFLICT, existing=existing)

    def _claim(self, write: ClaimRequest) -> Outcome:
        wanted = write.workflow
        if self._changes(INSERT_WORKFLOW, workflow_values(wanted)):
            return DONE
        existing = self._workflow(wanted.workflow_id)
        if existing is None or not self._may_take(existing, write):
            response = self._response(existing, wanted)
            return Outcome(OutcomeKind.CONFLICT, existing=existing, response=response)
        self._cursor.execute(
            TAKE_REQUEST,
            (
                wanted.executor_id,
                wanted.request_id,
                wanted.updated_at_us,
                wanted.fingerprint,
                wanted.workflow_id,
            ),
        )
        drop_trailing_failures(self._cursor, wanted.workflow_id, wanted.executor_id)
        return Outcome(OutcomeKind.RESUMED, existing=existing)

    def _may_take(self, existing: WorkflowRecord, claim: ClaimRequest) -> bool:
        same = existing.may_have_fingerprint(claim.workflow.fingerprint)
        is_free = same and self._is_free(existing, claim.workflow.executor_id)
        return is_free and not claim.comes_too_soon_for(existing)

    def _response(
        self, existing: WorkflowRecord | None, wanted: WorkflowRecord
    ) -> ResponseRecord | None:
        if existing is None or not existing.is_final or existing.fingerprint != wanted.fingerprint:
            return None
        found = self._cursor.execute(FIND_RESPONSE, (existing.workflow_id,)).fetchone()
        return response_from(found) if found is not None else None

    def _is_free(self, existing: WorkflowRecord, executor_id: str | None) -> bool:
        owner = existing.executor_id
        return not existing.is_final and (owner == executor_id or owner not in self._living)

    def _record(self, write: RecordStep) -> Outcome:
        if self._changes(INSERT_STEP, step_parameters(write)):
            return DONE
        return outcome_of_refused_step(write, self._step(write.step))

    def _complete(self, write: CompleteStep) -> Outcome:
        if self._changes(COMPLETE_STEP, completion_parameters(write)):
            return DONE
        return outcome_of_refused_step(write, self._step(write.step))

    def _record_chunk(self, write: RecordChunk) -> Outcome:
        chunk = write.chunk
        owner = (chunk.workflow_id, write.executor_id)
        if self._changes(INSERT_CHUNK, (*chunk_values(chunk), *owner)):
            if write.cuts:
                cut = (chunk.workflow_id, chunk.cut_to, chunk.end_offset)
                self._cursor.execute(CUT_CHUNKS, cut)
            return DONE
        place = (chunk.workflow_id, chunk.end_offset)
        found = self._cursor.execute(FIND_CHUNK, place).fetchone()
        if found is None:
            return FENCED
        # The same chunk: this very write was committed before, and its result was lost.
        return DONE if chunk_from(found) == chunk else Outcome(OutcomeKind.CONFLICT)

    def _resume(self, write: ResumeWorkflow) -> Outcome:
        existing = self._workflow(write.workflow_id)
        if existing is None or not self._is_free(existing, write.executor_id):
            return Outcome(OutcomeKind.CONFLICT, existing=existing)
        parameters = (write.executor_id, write.resumed_at_us, write.workflow_id)
        self._cursor.execute(RESUME_WORKFLOW, parameters)
        return DONE

    def _set_fingerprint(self, write: SetFingerprint) -> Outcome:
        place = (write.workflow_id, write.executor_id, write.pending)
        if self._changes(SET_FINGERPRINT, (write.fingerprint, *place)):
            return DONE
        existing = self._workflow(write.workflow_id)
        is_there = existing is not None and existing.fingerprint == write.fingerprint
        return DONE if is_there else FENCED

    def _set_last_span(self, write: SetLastSpan) -> Outcome:
        parameters = (write.last_span, write.workflow_id, write.executor_id)
        self._cursor.execute(SET_LAST_SPAN, parameters)
        return DONE

    def _finish(self, write: FinishWorkflow) -> Outcome:
        if not self._changes(FINISH_WORKFLOW, finish_parameters(write)):
            existing = self._workflow(write.workflow_id)
            return DONE if existing is not None and is_same_end(existing, write) else FENCED
        if write.response is not None:
            self._cursor.execute(INSERT_RESPONSE, response_values(write.response))
        self._cursor.executemany(INSERT_WORKFLOW, map(workflow_values, write.starts))
        return DONE

    def _clear_crash_count(self, write: ClearCrashCount) -> Outcome:
        self._cursor.execute(CLEAR_CRASH_COUNT, (write.workflow_id, write.executor_id))
        return DONE

    def _release(self, write: ReleaseWorkflow) -> Outcome:
        parameters = (write.retry_at_us, write.workflow_id, write.executor_id)
        self._cursor.execute(RELEASE_WORKFLOW, parameters)
        return DONE

    def _forget(self, write: ForgetRequest) -> Outcome:
        if self._changes(FORGET_REQUEST, (write.workflow_id, write.executor_id)):
            self._cursor.execute(DELETE_CHUNKS, (write.workflow_id,))
        return DONE

    def _cancel(self, write: CancelWorkflow) -> Outcome:
        return cancel_workflow(self._cursor, write)

    def _changes(self, statement: str, parameters: tuple[Any, ...]) -> bool:
        return self._cursor.execute(statement, parameters).rowcount == 1

    def _step(self, step: StepRecord) -> StepRecord | None:
        place = (step.workflow_id, step.step_number)
        found = self._cursor.execute(FIND_STEP, place).fetchone()
        return step_from(found) if found is not None else None

    def _workflow(self, workflow_id: str) -> WorkflowRecord | None:
        found = self._cursor.execute(FIND_WORKFLOW, (workflow_id,)).fetchone()
        return workflow_from(found) if found is not None else None


_APPLY: dict[type, Callable[[SQLiteWriter, Any], Outcome]] = {
    StartWorkflow: SQLiteWriter._start,
    ClaimRequest: SQLiteWriter._claim,
    RecordStep: SQLiteWriter._record,
    CompleteStep: SQLiteWriter._complete,
    RecordChunk: SQLiteWriter._record_chunk,
    ResumeWorkflow: SQLiteWriter._resume,
    SetFingerprint: SQLiteWriter._set_fingerprint,
    SetLastSpan: SQLiteWriter._set_last_span,
    FinishWorkflow: SQLiteWriter._finish,
    ClearCrashCount: SQLiteWriter._clear_crash_count,
    ReleaseWorkflow: SQLiteWriter._release,
    ForgetRequest: SQLiteWriter._forget,
    CancelWorkflow: SQLiteWriter._cancel,
}
