"""Looking into contestants' tables from outside: how far they are, and filling them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import asyncpg

from benchmarks.contestants.registry import DBOS, LIMIT, OURS
from benchmarks.support.databases import fetch

__all__ = ["TABLES", "Tables", "query", "tidy_up"]


@dataclass(frozen=True)
class Tables:
    """Where a contestant keeps its workflows.

    Attributes:
        schema: On Postgres.
        workflows: The table of workflows.
        steps: The table of steps.
        id_column: Of both tables.
        is_open: The condition for a workflow that is not finished.
        is_done: The condition for one that is, with a result.
    """

    schema: str
    workflows: str
    steps: str
    id_column: str
    is_open: str
    is_done: str

    def name(self, table: str, url: str) -> str:
        """Return a table's full name."""
        return table if url.startswith("sqlite") else f'"{self.schema}"."{table}"'

    def has_open(self, url: str) -> bool:
        """Tell whether a workflow is not finished."""
        table = self.name(self.workflows, url)
        ((found,),) = query(url, f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {self.is_open})")
        return bool(found)

    def count_done(self, url: str) -> int:
        """Return how many are finished."""
        table = self.name(self.workflows, url)
        ((found,),) = query(url, f"SELECT count(*) FROM {table} WHERE {self.is_done}")
        return int(found)

    def fill(self, url: str, count: int) -> None:
        """Copy the workflow that is there, with its steps, many times under other ids."""
        workflows = self.name(self.workflows, url)
        ((template,),) = query(url, f"SELECT min({self.id_column}) FROM {workflows}")
        for table in (self.workflows, self.steps):
            names = _columns(url, self.schema, table)
            others = ", ".join(f'"{name}"' for name in names if name != self.id_column)
            numbers = (
                f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
                if url.startswith("sqlite")
                else f"WITH n(i) AS (SELECT generate_series(1, {count}))"
            )
            full_name = self.name(table, url)
            query(
                url,
                f"INSERT INTO {full_name} ({self.id_column}, {others}) {numbers} "
                f"SELECT 'filled-' || n.i, {others} FROM {full_name} AS old CROSS JOIN n "
                f"WHERE old.{self.id_column} = '{template}'",
            )


_OURS = Tables(
    schema="asgi_durable",
    workflows="asgi_durable_workflows",
    steps="asgi_durable_steps",
    id_column="workflow_id",
    is_open="state = 'PENDING'",
    is_done="state = 'SUCCESS'",
)
TABLES = {
    OURS: _OURS,
    LIMIT: _OURS,
    DBOS: Tables(
        schema="dbos",
        workflows="workflow_status",
        steps="operation_outputs",
        id_column="workflow_uuid",
        is_open="status IN ('PENDING', 'ENQUEUED')",
        is_done="status = 'SUCCESS'",
    ),
}


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Run a statement on a connection of its own, and commit."""
    if not url.startswith("sqlite"):
        return [tuple(row) for row in asyncio.run(fetch(url, sql))]
    path = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=60.0)) as connection, connection:
        return connection.execute(sql).fetchall()


def tidy_up(url: str) -> None:
    """Do on Postgres what it would do by itself some time later, in the middle of a round."""
    if not url.startswith("sqlite"):
        asyncio.run(_vacuum(url))


async def _vacuum(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def _columns(url: str, schema: str, table: str) -> Sequence[str]:
    if url.startswith("sqlite"):
        return [row[1] for row in query(url, f"PRAGMA table_info({table})")]
    rows = query(
        url,
        "SELECT column_name FROM information_schema.columns WHERE is_generated = 'NEVER' "
        f"AND table_schema = '{schema}' AND table_name = '{table}' ORDER BY ordinal_position",
    )
    return [row[0] for row in rows]
