"""Names, SQL fragments and records from the table definitions, for the driver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from typing import Any

import sqlalchemy as sa

from asgi_durable.storage import tables
from asgi_durable.storage.rows import (
    RowDecoder,
    chunk_values,
    columns,
    response_values,
    step_values,
    workflow_encoder,
)

__all__ = [
    "FENCES",
    "NOW_US",
    "OWNED",
    "Parameters",
    "PostgresNames",
    "arrays_of",
    "chunk_from",
    "chunk_values",
    "columns",
    "each_of",
    "list_of",
    "response_from",
    "response_values",
    "step_from",
    "step_values",
    "type_of",
    "workflow_from",
    "workflow_values",
]

FENCES = "asgi_durable_fences"
# The workflow is running, and executor $1 owns it.
OWNED = "w.executor_id = $1 AND w.state = 'PENDING'"
# The database's clock, now and not at the beginning of the transaction.
NOW_US = "(extract(epoch FROM clock_timestamp()) * 1000000)::int8"

_TYPES: dict[type[Any], str] = {
    sa.Text: "text",
    sa.LargeBinary: "bytea",
    sa.Integer: "int4",
    sa.BigInteger: "int8",
    sa.Boolean: "bool",
}


@dataclass(frozen=True, slots=True)
class PostgresNames:
    """The tables' names with their schema, quoted; no statement relies on a search path."""

    schema: str

    @property
    def quoted_schema(self) -> str:
        """The schema itself."""
        return f'"{self.schema}"'

    @property
    def channel(self) -> str:
        """The channel on which the executors of this schema receive messages."""
        return f"asgi_durable_{blake2s(self.schema.encode(), digest_size=8).hexdigest()}"

    @property
    def workflows(self) -> str:
        """See ``tables.workflows``."""
        return self._table(tables.workflows.name)

    @property
    def steps(self) -> str:
        """See ``tables.steps``."""
        return self._table(tables.steps.name)

    @property
    def responses(self) -> str:
        """See ``tables.responses``."""
        return self._table(tables.responses.name)

    @property
    def pieces(self) -> str:
        """See ``tables.pieces``."""
        return self._table(tables.pieces.name)

    @property
    def executors(self) -> str:
        """See ``tables.executors``."""
        return self._table(tables.executors.name)

    @property
    def schema_version(self) -> str:
        """See ``tables.schema_version``."""
        return self._table(tables.schema_version.name)

    @property
    def secrets(self) -> str:
        """See ``tables.secrets``."""
        return self._table(tables.secrets.name)

    @property
    def fences(self) -> str:
        """A table with a row for every executor whose workflows are not free; see ``schema``."""
        return self._table(FENCES)

    def _table(self, name: str) -> str:
        return f'"{self.schema}"."{name}"'

    def fence(self, executor: str) -> str:
        """Return a query of an executor's id, which returns no row if the executor is not alive.

        Invariant: the query locks the executor's fence until the transaction ends, and nobody
        takes a workflow of an executor while its fence exists. A dead executor is marked first,
        so that it begins no new transaction. Its fence is deleted once no transaction holds it:
        those that had begun have committed by then, and a later one finds no fence. Renewals of
        the lease update another row.
        """
        return (
            f"SELECT fence.executor_id FROM {self.fences} AS fence "
            f"JOIN {self.executors} AS executor ON executor.executor_id = fence.executor_id "
            f"WHERE fence.executor_id = {executor} AND executor.state = 'ALIVE' "
            "FOR KEY SHARE OF fence"
        )


class Parameters:
    """Numbers the parameters of a statement."""

    def __init__(self, count: int = 0) -> None:
        self._count = count

    def unnest(self, table_columns: Iterable[sa.Column[Any]], alias: str) -> str:
        """Return a FROM item that makes rows of one array parameter for each column."""
        names, marks = [], []
        for column in table_columns:
            self._count += 1
            names.append(column.name)
            marks.append(f"${self._count}::{type_of(column)}[]")
        return f"unnest({', '.join(marks)}) AS {alias}({', '.join(names)})"

    def next(self) -> str:
        """Return one more parameter."""
        self._count += 1
        return f"${self._count}"


def type_of(column: sa.Column[Any]) -> str:
    """Return the server's name of a column's type."""
    return _TYPES[type(column.type)]


def each_of(table: str, condition: str, alias: str = "w") -> str:
    """Return a FROM item: a table's rows that match each row of the FROM items before it.

    OFFSET makes it an index look-up for each row. A plain join may get a plan that reads the
    whole table, made while the table was small, and cached. The column ``place`` finds a row
    again in order to change it, and finds nothing if another transaction has changed it since.
    """
    return (
        f"CROSS JOIN LATERAL (SELECT {alias}.*, {alias}.ctid AS place FROM {table} AS {alias} "
        f"WHERE {condition} OFFSET 0) AS {alias}"
    )


def list_of(table: sa.Table, alias: str) -> str:
    """Return a table's columns for a SELECT."""
    return ", ".join(f"{alias}.{name}" for name in columns(table))


def arrays_of(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the values of each column of some rows, at least one."""
    return list(zip(*rows, strict=True))


_decoder = RowDecoder(checks_types=False)
workflow_from, step_from = _decoder.workflow, _decoder.step
response_from, chunk_from = _decoder.response, _decoder.chunk
workflow_values = workflow_encoder(bool)
