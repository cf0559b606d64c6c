"""The slow path of a commit, for writes that one statement could not apply.

It finds out why a row was not written, and takes ownership of workflows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from asgi_durable.storage.postgres.commits.batch import BatchStatements, Rows
from asgi_durable.storage.postgres.commits.cancel import cancel_workflows
from asgi_durable.storage.postgres.commits.slow_path_statements import SlowPathStatements
from asgi_durable.storage.postgres.connections.reconnecting import Connection
from asgi_durable.storage.postgres.errors import ChangedMeanwhileError
from asgi_durable.storage.postgres.rows import (
    arrays_of,
    chunk_from,
    step_from,
    workflow_from,
)
from asgi_durable.storage.records import ChunkRecord, ResponseRecord, WorkflowRecord
from asgi_durable.storage.writes import (
    DONE,
    FENCED,
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
    is_same_end,
    is_same_start,
    outcome_of_refused_step,
    workflow_id_of,
)

__all__ = ["apply_slowly", "find_refused_claims"]


async def apply_slowly(
    connection: Connection,
    statements: SlowPathStatements,
    batches: BatchStatements,
    executor_id: str,
    writes: Sequence[Write],
) -> list[Outcome]:
    """Apply writes in one transaction, whose number of statements does not depend on theirs.

    Args:
        connection: The connection.
        statements: The statements for the schema.
        batches: The fast path, for rows that can be written once their workflows are taken.
        executor_id: The executor that submitted the writes.
        writes: A group of ``write_order``, or a part of one.

    Raises:
        ChangedMeanwhileError: Other processes changed the rows. Nothing is written, and the
            caller starts again with the fast path.
    """
    async with connection.transaction():
        if not await connection.fetch(statements.fence, executor_id):
            return [FENCED] * len(writes)
        applied = _Application(connection, statements, batches, executor_id)
        await applied.take_workflows(writes)
        await applied.set_fingerprints(writes)
        await applied.apply_rows(writes)
        await applied.set_last_spans(writes)
        await applied.release_workflows(writes)
        applied.outcomes |= await cancel_workflows(connection, statements.cancel, writes)
        return [applied.outcomes.get(id(write), DONE) for write in writes]


async def find_refused_claims(
    connection: Connection,
    statements: SlowPathStatements,
    executor_id: str,
    writes: Sequence[Write],
) -> dict[int, Outcome]:
    """Return the outcomes of claims that are refused, by the writes' ``id()``.

    This needs no locks: a finished request stays finished, and a request that another executor
    was running a moment ago is reported as running. Other writes are left to
    :func:`apply_slowly`.
    """
    claims = [write for write in writes if isinstance(write, ClaimRequest)]
    if not claims:
        return {}
    ids = [write.workflow.workflow_id for write in claims]
    fingerprints = [write.workflow.fingerprint for write in claims]
    rows = await connection.fetch(statements.find_with_responses, ids, fingerprints)
    by_id = {row["workflow_id"]: row for row in rows}
    refused: dict[int, Outcome] = {}
    for write in claims:
        row = by_id.get(write.workflow.workflow_id)
        if row is None:
            continue
        outcome = _outcome_of_taking(write, _found_from(row), executor_id)
        if outcome.kind is OutcomeKind.CONFLICT:
            refused[id(write)] = replace(outcome, response=_response_from(row))
    return refused


@dataclass(frozen=True, slots=True)
class _Found:
    workflow: WorkflowRecord
    owner_lives: bool


class _Application:
    """The transaction of :func:`apply_slowly`; a write without an outcome is DONE."""

    def __init__(
        self,
        connection: Connection,
        statements: SlowPathStatements,
        batches: BatchStatements,
        executor_id: str,
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._batches = batches
        self._executor_id = executor_id
        self.outcomes: dict[int, Outcome] = {}

    async def take_workflows(self, writes: Sequence[Write]) -> None:
        """Apply starts, claims and resumptions; take ownership of the workflows that are free."""
        ownership_writes = [
            w for w in writes if isinstance(w, (StartWorkflow, ClaimRequest, ResumeWorkflow))
        ]
        if not ownership_writes:
            return
        ids = [workflow_id_of(write) for write in ownership_writes]
        # Invariant: rows are locked before they are read. A locked row cannot change before the
        # COMMIT, and a row that was not locked is final or owned by another executor.
        locked_rows = await self._connection.fetch(self._statements.lock, self._executor_id, ids)
        locked = {row["workflow_id"] for row in locked_rows}
        found = await _find(self._connection, self._statements, ids)
        taken: list[_Taking] = []
        for write in ownership_writes:
            existing = found.get(workflow_id_of(write))
            if isinstance(write, StartWorkflow):
                self.outcomes[id(write)] = _outcome_of_start(write, existing)
                continue
            outcome = self._outcome_of_taking(write, existing)
            self.outcomes[id(write)] = outcome
            if outcome.kind is OutcomeKind.CONFLICT or self._is_repeated(write, existing):
                continue
            if workflow_id_of(write) not in locked:
                raise ChangedMeanwhileError
            taken.append(_taking(write))
        if taken:
            await self._connection.fetch(
                self._statements.take, self._executor_id, *zip(*taken, strict=True)
            )
        if claimed := [workflow_id for workflow_id, _, is_claim, *_ in taken if is_claim]:
            await self._connection.fetch(self._statements.drop, self._executor_id, claimed)

    async def set_fingerprints(self, writes: Sequence[Write]) -> None:
        """Set the fingerprints of requests, before ends are written: afterwards it is refused."""
        wanted = [write for write in writes if isinstance(write, SetFingerprint)]
        if not wanted:
            return
        ids = [write.workflow_id for write in wanted]
        values = [(write.workflow_id, write.pending, write.fingerprint) for write in wanted]
        rows = await self._connection.fetch(
            self._statements.set_fingerprints, self._executor_id, *zip(*values, strict=True)
        )
        done = {row["workflow_id"] for row in rows}
        found = await _find(self._connection, self._statements, ids) if len(done) < len(ids) else {}
        for write in wanted:
            existing = found.get(write.workflow_id)
            if write.workflow_id not in done and not _has_fingerprint(existing, write):
                self.outcomes[id(write)] = FENCED

    async def apply_rows(self, writes: Sequence[Write]) -> None:
        """Write rows of workflows that are owned now; explain refused rows, and cut streams."""
        kinds = (RecordStep, CompleteStep, RecordChunk, FinishWorkflow)
        rows = Rows.of([write for write in writes if isinstance(write, kinds)])
        if not rows.count:
            return
        applied = await self._batches.apply(self._connection, self._executor_id, rows)
        steps: list[RecordStep | CompleteStep] = [*rows.steps, *rows.completions]
        await self._explain_steps([step for step in steps if not applied.has(step)])
        await self._explain_chunks([chunk for chunk in rows.chunks if not applied.has(chunk)])
        await self._explain_ends([end for end in rows.ends if not applied.has(end)])
        if cuts := [write.chunk for write in rows.chunks if write.cuts and applied.has(write)]:
            places = [(chunk.workflow_id, chunk.cut_to, chunk.end_offset) for chunk in cuts]
            await self._connection.fetch(self._statements.cut_chunks, *zip(*places, strict=True))

    async def set_last_spans(self, writes: Sequence[Write]) -> None:
        """Store the spans of executions, before workflows are released to other executors."""
        spans = [(w.workflow_id, w.last_span) for w in writes if isinstance(w, SetLastSpan)]
        if spans:
            await self._connection.fetch(
                self._statements.set_last_spans, self._executor_id, *arrays_of(sorted(spans))
            )

    async def release_workflows(self, writes: Sequence[Write]) -> None:
        """Clear crash counts, release and forget workflows, after all other writes for them."""
        executor_id, statements = self._executor_id, self._statements
        if ids := [write.workflow_id for write in writes if isinstance(write, ClearCrashCount)]:
            await self._connection.fetch(statements.clear_crash_count, executor_id, ids)
        releases = [write for write in writes if isinstance(write, ReleaseWorkflow)]
        if releases:
            rows = [(write.workflow_id, write.retry_at_us) for write in releases]
            await self._connection.fetch(statements.release, executor_id, *arrays_of(rows))
        if ids := [write.workflow_id for write in writes if isinstance(write, ForgetRequest)]:
            await self._connection.fetch(statements.forget, executor_id, ids)

    def _outcome_of_taking(
        self, write: ClaimRequest | ResumeWorkflow, found: _Found | None
    ) -> Outcome:
        if found is None and isinstance(write, ClaimRequest):
            # Its row stood in the way of the fast path, and has been deleted since.
            raise ChangedMeanwhileError
        return _outcome_of_taking(write, found, self._executor_id)

    def _is_repeated(self, write: Write, found: _Found | None) -> bool:
        """Tell whether this same write has been applied before, and its response got lost."""
        return (
            isinstance(write, ResumeWorkflow)
            and found is not None
            and found.workflow.executor_id == write.executor_id
            and found.workflow.updated_at_us == write.resumed_at_us
            and found.workflow.attempts > 1
        )

    async def _explain_steps(self, refused: Sequence[RecordStep | CompleteStep]) -> None:
        if not refused:
            return
        places = [(write.step.workflow_id, write.step.step_number) for write in refused]
        rows = await self._connection.fetch(self._statements.find_steps, *zip(*places, strict=True))
        found = {(step.workflow_id, step.step_number): step for step in map(step_from, rows)}
        for write, place in zip(refused, places, strict=True):
            self.outcomes[id(write)] = outcome_of_refused_step(write, found.get(place))

    async def _explain_chunks(self, refused: Sequence[RecordChunk]) -> None:
        if not refused:
            return
        places = [(write.chunk.workflow_id, write.chunk.end_offset) for write in refused]
        rows = await self._connection.fetch(
            self._statements.find_chunks, *zip(*places, strict=True)
        )
        found = {(chunk.workflow_id, chunk.end_offset): chunk for chunk in map(chunk_from, rows)}
        for write, place in zip(refused, places, strict=True):
            self.outcomes[id(write)] = _outcome_of_chunk(write, found.get(place))

    async def _explain_ends(self, refused: Sequence[FinishWorkflow]) -> None:
        if not refused:
            return
        ids = [write.workflow_id for write in refused]
        found = await _find(self._connection, self._statements, ids)
        for write in refused:
            self.outcomes[id(write)] = _outcome_of_end(write, found.get(write.workflow_id))


async def _find(
    connection: Connection, statements: SlowPathStatements, ids: Sequence[str]
) -> dict[str, _Found]:
    rows = await connection.fetch(statements.find, ids)
    return {row["workflow_id"]: _found_from(row) for row in rows}


def _found_from(row: Any) -> _Found:
    return _Found(workflow_from(row), row["owner_lives"])


def _response_from(row: Any) -> ResponseRecord | None:
    if row["status_code"] is None:
        return None
    return ResponseRecord(
        workflow_id=row["workflow_id"],
        status_code=row["status_code"],
        headers=row["headers"],
        body=row["body"],
        expires_at_us=row["expires_at_us"],
        forgotten_at_us=row["forgotten_at_us"],
        stream_end=row["stream_end"],
    )


def _outcome_of_taking(
    write: ClaimRequest | ResumeWorkflow, found: _Found | None, executor_id: str
) -> Outcome:
    if found is None:
        return Outcome(OutcomeKind.CONFLICT)
    existing = found.workflow
    is_free = existing.executor_id == executor_id or not found.owner_lives
    if existing.is_final or not is_free:
        return Outcome(OutcomeKind.CONFLICT, existing=existing)
    if isinstance(write, ResumeWorkflow):
        return DONE
    is_same = existing.may_have_fingerprint(write.workflow.fingerprint)
    if not is_same or write.comes_too_soon_for(existing):
        return Outcome(OutcomeKind.CONFLICT, existing=existing)
    return Outcome(OutcomeKind.RESUMED, existing=existing)


# A workflow's id, the time, whether it is claimed, and the claim's request id and fingerprint.
_Taking = tuple[str, int, bool, str | None, str | None]


def _taking(write: ClaimRequest | ResumeWorkflow) -> _Taking:
    if isinstance(write, ResumeWorkflow):
        return (write.workflow_id, write.resumed_at_us, False, None, None)
    new = write.workflow
    return (new.workflow_id, new.updated_at_us, True, new.request_id, new.fingerprint)


def _has_fingerprint(found: _Found | None, write: SetFingerprint) -> bool:
    return found is not None and found.workflow.fingerprint == write.fingerprint


def _outcome_of_start(write: StartWorkflow, found: _Found | None) -> Outcome:
    if found is None:
        raise ChangedMeanwhileError
    existing = found.workflow
    same = is_same_start(existing, write.workflow)
    return DONE if same else Outcome(OutcomeKind.CONFLICT, existing=existing)


def _outcome_of_chunk(write: RecordChunk, existing: ChunkRecord | None) -> Outcome:
    if existing is None:
        return FENCED
    return DONE if existing == write.chunk else Outcome(OutcomeKind.CONFLICT)


def _outcome_of_end(write: FinishWorkflow, found: _Found | None) -> Outcome:
    if found is None:
        return FENCED
    return DONE if is_same_end(found.workflow, write) else FENCED
