"""The limits on Postgres: asyncpg, prepared statements, a commit is one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import sqlalchemy as sa

from asgi_durable import Durable
from asgi_durable.storage import tables
from benchmarks.contestants.group_commit import GroupCommit
from benchmarks.contestants.raw_rows import (
    END_COLUMNS,
    STEP_COLUMNS,
    WORKFLOW_COLUMNS,
    RawContestant,
    Row,
    Writes,
    folded,
)

__all__ = ["RawEach", "RawGroup"]

CONNECTIONS = 20
SCHEMA = "asgi_durable"
WORKFLOWS, STEPS = (f'"{SCHEMA}"."{t.name}"' for t in (tables.workflows, tables.steps))
ARRAY_TYPES: dict[type[Any], str] = {
    sa.Text: "text[]",
    sa.LargeBinary: "bytea[]",
    sa.Integer: "int4[]",
    sa.BigInteger: "int8[]",
    sa.Boolean: "bool[]",
}

ASK_TYPES = "SELECT " + ", ".join(f"${n}::{t}" for n, t in enumerate(ARRAY_TYPES.values(), 1))


def _unnest(table: sa.Table, names: Sequence[str], first: int) -> str:
    """Return rows of one array parameter for each column, numbered from *first* on."""
    types = [ARRAY_TYPES[type(table.c[name].type)] for name in names]
    marks = [f"${first + place}::{kind}" for place, kind in enumerate(types)]
    return f"unnest({', '.join(marks)}) AS new({', '.join(names)})"


def statement_of(*, starts: bool, steps: bool, ends: bool) -> str:
    """Return the one statement that writes a batch with these kinds of rows."""
    parts, first = [], 1
    for wanted, target, table, names in (
        (starts, WORKFLOWS, tables.workflows, WORKFLOW_COLUMNS),
        (steps, STEPS, tables.steps, STEP_COLUMNS),
    ):
        if wanted:
            listed = ", ".join(names)
            parts.append(
                f"INSERT INTO {target} ({listed}) "
                f"SELECT {listed} FROM {_unnest(table, names, first)}"
            )
            first += len(names)
    if ends:
        changes = ", ".join(f"{name} = new.{name}" for name in END_COLUMNS[:-1])
        # A look-up in the index for each, whatever the planner thinks of the table's size.
        parts.append(
            f"UPDATE {WORKFLOWS} AS target SET {changes} "
            f"FROM {_unnest(tables.workflows, END_COLUMNS, first)} CROSS JOIN LATERAL "
            f"(SELECT w.ctid AS place FROM {WORKFLOWS} AS w "
            "WHERE w.workflow_id = new.workflow_id OFFSET 0) AS found "
            "WHERE target.ctid = found.place"
        )
    *first_parts, last = parts
    before = ", ".join(f"part{place} AS ({part})" for place, part in enumerate(first_parts))
    return f"WITH {before} {last}" if before else last


def parameters_of(batch: Sequence[Writes]) -> tuple[str, list[Any]]:
    """Return a batch's statement and its arrays."""
    starts: list[Row] = []
    steps: list[Row] = []
    ends: list[Row] = []
    for writes in batch:
        if writes.start is not None:
            # A statement cannot change a row that it inserts: one that ends at once is folded.
            ended = writes.end is not None
            starts.append(folded(writes.start, writes.end) if ended else writes.start)
        elif writes.end is not None:
            ends.append(writes.end)
        if writes.step is not None:
            steps.append(writes.step)
    values: list[Any] = []
    for rows in (starts, steps, ends):
        if rows:
            values += zip(*rows, strict=True)
    key = (bool(starts), bool(steps), bool(ends))
    return STATEMENTS[key], values


KINDS = [(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)]
STATEMENTS = {
    (a, b, c): statement_of(starts=a, steps=b, ends=c) for a, b, c in KINDS if any((a, b, c))
}


class _Connected(RawContestant):
    """Has connections."""

    connections = 1

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._idle: list[asyncpg.Connection] = []
        # Fair, as a queue of connections is not: who asks first is served first.
        self._free = asyncio.Semaphore(self.connections)

    async def open(self) -> None:
        await Durable(self._url).migrate()
        for _ in range(self.connections):
            connection = await asyncpg.connect(self._url)
            # The driver asks the server about types now, and not during the measurement.
            await connection.fetch(ASK_TYPES, *([] for _ in ARRAY_TYPES))
            self._idle.append(connection)

    async def close(self) -> None:
        for connection in self._idle:
            await connection.close()

    async def _write(self, batch: Sequence[Writes]) -> None:
        statement, values = parameters_of(batch)
        async with self._free:
            connection = self._idle.pop()
            try:
                # A statement of its own is a transaction of its own.
                await connection.fetch(statement, *values)
            finally:
                self._idle.append(connection)


class RawEach(_Connected):
    """One commit for each moment of each workflow, over twenty connections."""

    connections = CONNECTIONS

    async def commit(self, writes: Writes) -> None:
        await self._write([writes])


class RawGroup(_Connected):
    """One commit for whatever all workflows have to write, over one connection; no timer."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._group = GroupCommit(self._write)

    async def commit(self, writes: Writes) -> None:
        await self._group.submit(writes)
