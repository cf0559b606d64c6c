"""The fast path of a commit: one statement for all rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from asgi_durable.storage import tables
from asgi_durable.storage.postgres.connections.reconnecting import Connection
from asgi_durable.storage.postgres.rows import (
    OWNED,
    Parameters,
    PostgresNames,
    arrays_of,
    chunk_values,
    columns,
    each_of,
    list_of,
    response_values,
    step_values,
    workflow_values,
)
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.storage.writes import (
    ClaimRequest,
    CompleteStep,
    FinishWorkflow,
    RecordChunk,
    RecordStep,
    StartWorkflow,
    Write,
)

__all__ = ["Applied", "BatchStatements", "Rows"]

_END_COLUMNS = tuple(
    tables.workflows.c[name]
    for name in ("workflow_id", "state", "output", "error", "updated_at_us")
)
_OUTCOME_COLUMNS = tuple(
    tables.steps.c[name]
    for name in ("workflow_id", "step_number", "output", "error", "finished_at_us")
)
_outcome_values = attrgetter(*(column.name for column in _OUTCOME_COLUMNS))
_END_PLACES = tuple(columns(tables.workflows).index(column.name) for column in _END_COLUMNS)
_workflow_id = attrgetter("workflow_id")


@dataclass(slots=True)
class Rows:
    """The rows that one statement writes, by their kind.

    Attributes:
        folded: Ends of workflows that start in the same statement, by their ids.
    """

    starts: list[WorkflowRecord] = field(default_factory=list)
    steps: list[RecordStep] = field(default_factory=list)
    completions: list[CompleteStep] = field(default_factory=list)
    chunks: list[RecordChunk] = field(default_factory=list)
    ends: list[FinishWorkflow] = field(default_factory=list)
    folded: dict[str, FinishWorkflow] = field(default_factory=dict)

    @classmethod
    def of(cls, writes: Iterable[Write]) -> Rows:
        """Return the rows of some writes; writes of other kinds than these have no rows."""
        rows = cls()
        ends: dict[str, FinishWorkflow] = {}
        by_kind: dict[type, list[Any]] = {
            RecordStep: rows.steps,
            CompleteStep: rows.completions,
            RecordChunk: rows.chunks,
        }
        for write in writes:
            of_kind = by_kind.get(type(write))
            if of_kind is not None:
                of_kind.append(write)
            elif isinstance(write, FinishWorkflow):
                ends[write.workflow_id] = write
            elif isinstance(write, (StartWorkflow, ClaimRequest)):
                rows.starts.append(write.workflow)
        # Invariant: all parts of a statement see the same snapshot, so none can update a row that
        # another part inserts. A workflow that starts and ends here is inserted as finished.
        for workflow in rows.starts if ends else ():
            end = ends.pop(workflow.workflow_id, None)
            if end is not None:
                rows.folded[workflow.workflow_id] = end
        rows.ends.extend(ends.values())
        # Sorted, so that two processes that lock the same rows wait and do not deadlock.
        rows.starts.sort(key=_workflow_id)
        rows.ends.sort(key=_workflow_id)
        return rows

    @property
    def count(self) -> int:
        """The number of rows of workflows, steps and chunks."""
        steps = len(self.steps) + len(self.completions)
        return len(self.starts) + steps + len(self.chunks) + len(self.ends)

    def start_values(self) -> list[tuple[Any, ...]]:
        """Return the rows that are inserted for workflows."""
        if not self.folded:
            return [workflow_values(workflow) for workflow in self.starts]
        folded = self.folded.get
        return [_start_values(workflow, folded(workflow.workflow_id)) for workflow in self.starts]


@dataclass(frozen=True, slots=True)
class Applied:
    """The rows that a statement has written.

    Attributes:
        is_alive: False if the executor is dead; no row was written then.
        is_whole: True if all rows were written; the other attributes are empty then.
    """

    is_alive: bool
    is_whole: bool
    started: frozenset[str] = frozenset()
    recorded: frozenset[tuple[str, int]] = frozenset()
    streamed: frozenset[tuple[str, int]] = frozenset()
    ended: frozenset[str] = frozenset()

    def has(self, write: Write) -> bool:
        """Tell whether the row of a write was written."""
        if isinstance(write, (StartWorkflow, ClaimRequest)):
            return self.is_whole or write.workflow.workflow_id in self.started
        if isinstance(write, (RecordStep, CompleteStep)):
            place = (write.step.workflow_id, write.step.step_number)
            return self.is_whole or place in self.recorded
        if isinstance(write, RecordChunk):
            place = (write.chunk.workflow_id, write.chunk.end_offset)
            return self.is_whole or place in self.streamed
        return isinstance(write, FinishWorkflow) and (
            self.is_whole or write.workflow_id in self.ended
        )


class _Parts(NamedTuple):
    """The kinds of rows that a statement writes."""

    starts: bool
    steps: bool
    completions: bool
    chunks: bool
    ends: bool
    responses: bool
    followers: bool


class BatchStatements:
    """Builds, caches and runs a statement for each combination of kinds of rows."""

    def __init__(self, names: PostgresNames) -> None:
        self._names = names
        self._cache: dict[_Parts, str] = {}

    async def apply(self, connection: Connection, executor_id: str, rows: Rows) -> Applied:
        """Write rows for an executor, except those that conflict with existing rows."""
        parts, values = _parts_and_values(rows)
        statement = self._cache.get(parts)
        if statement is None:
            statement = self._cache[parts] = _Builder(self._names).statement(parts)
        row = await connection.fetch_one(statement, executor_id, rows.count, *values)
        if row["is_whole"]:
            return Applied(is_alive=True, is_whole=True)
        started = frozenset(row["started"])
        return Applied(
            is_alive=row["is_alive"],
            is_whole=False,
            started=started,
            recorded=_places(row, "recorded_ids", "recorded_numbers"),
            streamed=_places(row, "streamed_ids", "streamed_ends") if rows.chunks else frozenset(),
            ended=started.intersection(rows.folded) | frozenset(row["ended"]),
        )


def _parts_and_values(rows: Rows) -> tuple[_Parts, list[Any]]:
    """Return the kinds of rows there are, and the statement's parameters in their order."""
    ends = [*rows.ends, *rows.folded.values()]
    responses = [response_values(end.response) for end in ends if end.response is not None]
    followers = [workflow_values(start) for end in ends for start in end.starts]
    parts = _Parts(
        starts=bool(rows.starts),
        steps=bool(rows.steps),
        completions=bool(rows.completions),
        chunks=bool(rows.chunks),
        ends=bool(rows.ends),
        responses=bool(responses),
        followers=bool(followers),
    )
    values: list[Any] = []
    if rows.starts:
        values += arrays_of(rows.start_values())
    if rows.steps:
        values += arrays_of([step_values(write.step) for write in rows.steps])
        values.append(list({write.step.workflow_id for write in rows.steps}))
    if rows.completions:
        values += arrays_of([_outcome_values(write.step) for write in rows.completions])
    if rows.chunks:
        values += arrays_of([chunk_values(write.chunk) for write in rows.chunks])
        values.append(list({write.chunk.workflow_id for write in rows.chunks}))
    if rows.ends:
        values += arrays_of([_end_values(end) for end in rows.ends])
    for others in (responses, followers):
        if others:
            values += arrays_of(others)
    return parts, values


class _Builder:
    """Builds a statement: a CTE for each kind of row, and a SELECT of the rows they wrote."""

    def __init__(self, names: PostgresNames) -> None:
        self._names = names
        # $1 is the executor, $2 is `Rows.count`.
        self._parameters = Parameters(2)
        # MATERIALIZED, so that the fence is evaluated and locked once.
        self._parts = [f"executor AS MATERIALIZED ({names.fence('$1::text')})"]
        self._finished: list[str] = []

    def statement(self, parts: _Parts) -> str:
        """Return the statement for some kinds of rows."""
        if parts.starts:
            self._add_starts()
        if parts.steps:
            self._add_steps(with_starts=parts.starts)
        if parts.completions:
            self._add_completions()
        if parts.chunks:
            self._add_chunks(with_starts=parts.starts)
        if parts.ends:
            self._add_ends()
        if parts.responses:
            self._add_responses()
        if parts.followers:
            self._add_followers()
        started, ended = ["started"] * parts.starts, ["ended"] * parts.ends
        recorded = ["recorded"] * parts.steps + ["completed"] * parts.completions
        streamed = ["streamed"] * parts.chunks
        count = " + ".join(
            f"(SELECT count(*) FROM {name})" for name in [*started, *recorded, *streamed, *ended]
        )
        streamed_places = (
            f", {_returned(streamed, 'workflow_id')} AS streamed_ids, "
            f"{_returned(streamed, 'end_offset')} AS streamed_ends"
            if streamed
            else ""
        )
        return (
            f"WITH {', '.join(self._parts)}, "
            f"result AS MATERIALIZED (SELECT {count} = $2::int8 AS is_whole) "
            "SELECT EXISTS (SELECT 1 FROM executor) AS is_alive, is_whole, "
            f"{_returned(started, 'workflow_id')} AS started, "
            f"{_returned(recorded, 'workflow_id')} AS recorded_ids, "
            f"{_returned(recorded, 'step_number', 'int4[]')} AS recorded_numbers, "
            f"{_returned(ended, 'workflow_id')} AS ended{streamed_places} FROM result"
        )

    def _add_starts(self) -> None:
        names = ", ".join(columns(tables.workflows))
        source = self._parameters.unnest(tables.workflows.columns, "new")
        self._parts.append(
            f"started AS (INSERT INTO {self._names.workflows} ({names}) "
            f"SELECT {list_of(tables.workflows, 'new')} FROM {source} CROSS JOIN executor "
            "ON CONFLICT DO NOTHING RETURNING workflow_id)"
        )
        self._finished.append("SELECT workflow_id FROM started")

    def _add_steps(self, *, with_starts: bool) -> None:
        names = ", ".join(columns(tables.steps))
        source = self._parameters.unnest(tables.steps.columns, "new")
        owned = self._owned(with_starts=with_starts)
        self._parts.append(
            f"recorded AS (INSERT INTO {self._names.steps} ({names}) "
            f"SELECT {list_of(tables.steps, 'new')} FROM {source} "
            f"WHERE {_is_among(owned)} ON CONFLICT DO NOTHING RETURNING workflow_id, step_number)"
        )

    def _add_completions(self) -> None:
        source = self._parameters.unnest(_OUTCOME_COLUMNS, "new")
        owner = each_of(self._names.workflows, "w.workflow_id = new.workflow_id")
        place = "s.workflow_id = new.workflow_id AND s.step_number = new.step_number"
        self._parts.append(
            f"completed AS (UPDATE {self._names.steps} AS target SET output = new.output, "
            "error = new.error, finished_at_us = new.finished_at_us "
            f"FROM {source} {owner} {each_of(self._names.steps, place, 's')} CROSS JOIN executor "
            # The first recorded outcome of a step is final.
            f"WHERE target.ctid = s.place AND s.output IS NULL AND s.error IS NULL AND {OWNED} "
            "RETURNING target.workflow_id, target.step_number)"
        )

    def _add_chunks(self, *, with_starts: bool) -> None:
        names = ", ".join(columns(tables.pieces))
        source = self._parameters.unnest(tables.pieces.columns, "new")
        owned = self._owned(with_starts=with_starts)
        self._parts.append(
            f"streamed AS (INSERT INTO {self._names.pieces} ({names}) "
            f"SELECT {list_of(tables.pieces, 'new')} FROM {source} "
            f"WHERE {_is_among(owned)} ON CONFLICT DO NOTHING RETURNING workflow_id, end_offset)"
        )

    def _owned(self, *, with_starts: bool) -> str:
        """Return a query of the executor's workflows among the ids of the next parameter."""
        wanted = f"unnest({self._parameters.next()}::text[]) AS wanted(id)"
        found = each_of(self._names.workflows, "w.workflow_id = wanted.id")
        owned = f"SELECT w.workflow_id FROM {wanted} {found} CROSS JOIN executor WHERE {OWNED}"
        if with_starts:
            owned += " UNION ALL SELECT workflow_id FROM started"
        return owned

    def _add_ends(self) -> None:
        source = self._parameters.unnest(_END_COLUMNS, "new")
        found = each_of(self._names.workflows, "w.workflow_id = new.workflow_id")
        self._parts.append(
            f"ended AS (UPDATE {self._names.workflows} AS target SET state = new.state, "
            "output = new.output, error = new.error, updated_at_us = new.updated_at_us "
            f"FROM {source} {found} CROSS JOIN executor WHERE target.ctid = w.place AND {OWNED} "
            "RETURNING target.workflow_id)"
        )
        self._finished.append("SELECT workflow_id FROM ended")

    def _add_responses(self) -> None:
        names = columns(tables.responses)
        source = self._parameters.unnest(tables.responses.columns, "new")
        changes = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        self._parts.append(
            f"answered AS (INSERT INTO {self._names.responses} ({', '.join(names)}) "
            f"SELECT {list_of(tables.responses, 'new')} FROM {source} "
            f"WHERE {_is_among(' UNION ALL '.join(self._finished))} "
            f"ON CONFLICT (workflow_id) DO UPDATE SET {changes})"
        )

    def _add_followers(self) -> None:
        """Insert the workflows that an end starts; they are written whenever the end is."""
        names = ", ".join(columns(tables.workflows))
        source = self._parameters.unnest(tables.workflows.columns, "new")
        ended = _is_among(" UNION ALL ".join(self._finished), "parent_id")
        self._parts.append(
            f"followed AS (INSERT INTO {self._names.workflows} ({names}) "
            f"SELECT {list_of(tables.workflows, 'new')} FROM {source} "
            f"WHERE {ended} ON CONFLICT DO NOTHING)"
        )


def _is_among(query: str, column: str = "workflow_id") -> str:
    """Return the condition that a new row belongs to a workflow that a query finds.

    IS TRUE makes the planner use a hash table. It would plan a join for a few rows, whose time
    grows with the square of the batch.
    """
    return f"(new.{column} IN ({query})) IS TRUE"


def _returned(parts: Sequence[str], column: str, array_type: str = "text[]") -> str:
    if not parts:
        return f"'{{}}'::{array_type}"
    # If all rows were written, the caller knows them, and none is sent.
    arrays = " || ".join(f"ARRAY(SELECT {column} FROM {part})" for part in parts)
    return f"CASE WHEN NOT is_whole THEN {arrays} END"


def _places(row: Any, ids: str, numbers: str) -> frozenset[tuple[str, int]]:
    return frozenset(zip(row[ids], row[numbers], strict=True))


def _end_values(end: FinishWorkflow) -> tuple[Any, ...]:
    return (end.workflow_id, end.state.value, end.output, end.error, end.finished_at_us)


def _start_values(workflow: WorkflowRecord, end: FinishWorkflow | None) -> tuple[Any, ...]:
    values = workflow_values(workflow)
    if end is None:
        return values
    row = list(values)
    for place, value in zip(_END_PLACES, _end_values(end), strict=True):
        row[place] = value
    return tuple(row)
