"""The rows that the library writes for a workflow, made by hand, and when they are committed.

The code that writes them is a limit and no library: replay, retries, types, digests, fences,
ownership, cancellation and context are left out.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from asgi_durable.storage import tables

__all__ = ["END_COLUMNS", "RawContestant", "Row", "Writes", "columns"]

Row = tuple[Any, ...]
EXECUTOR_ID = "01a20dc0-e76d-7317-9098-03d3b03026a0"
DIGEST = b"0123456789abcdef"


def columns(table: Table) -> tuple[str, ...]:
    """Return the names of a table's columns."""
    return tuple(column.name for column in table.columns)


WORKFLOW_COLUMNS, STEP_COLUMNS = columns(tables.workflows), columns(tables.steps)
END_COLUMNS = ("state", "output", "updated_at_us", "workflow_id")

# The columns of a new row, but for its id, its input and its times.
_NEW: dict[str, Any] = {
    "name": "work",
    "state": "PENDING",
    "executor_id": EXECUTOR_ID,
    "attempts": 1,
    "awaited": True,
    "crashes": 0,
    "crashed_at_entry": 0,
}
_TEMPLATE = [_NEW.get(name) for name in WORKFLOW_COLUMNS]
_ID, _INPUT, _CREATED, _UPDATED, _STATE, _OUTPUT = (
    WORKFLOW_COLUMNS.index(name)
    for name in ("workflow_id", "input", "created_at_us", "updated_at_us", "state", "output")
)
_STEP_NUMBER, _STEP_OUTPUT, _FINISHED = (
    STEP_COLUMNS.index(name) for name in ("step_number", "output", "finished_at_us")
)
_STEP_TEMPLATE = [{"name": "step", "digest": DIGEST}.get(name) for name in STEP_COLUMNS]
_STEP_ID = STEP_COLUMNS.index("workflow_id")


@dataclass(slots=True)
class Writes:
    """The rows that one workflow has to commit at one moment."""

    start: Row | None = None
    step: Row | None = None
    end: Row | None = None


class RawContestant(ABC):
    """A workflow's code, as the library would run it."""

    def __init__(self) -> None:
        # As long as the library's ids, and in the order of time as well.
        self._prefix = f"{time.time_ns() // 1_000_000:012x}"
        self._count = 0

    async def run(self, steps: int, number: int) -> int:
        """Run one: n steps take n + 1 commits, as the last step's record waits for the end."""
        self._count += 1
        workflow_id = f"{self._prefix}{self._count:024d}"
        data = json.dumps({"number": number, "steps": steps}, separators=(",", ":")).encode()
        start = _start_row(workflow_id, data)
        if not steps:
            end = _end_row(workflow_id, _encoded(number))
            await self.commit(Writes(start=start, end=end))
            return number
        await self.commit(Writes(start=start))
        for place in range(steps):
            output = _encoded(await step(number))
            writes = Writes(step=_step_row(workflow_id, place, output))
            if place == steps - 1:
                writes.end = _end_row(workflow_id, output)
            await self.commit(writes)
            number = json.loads(output)
        return number

    @abstractmethod
    async def open(self) -> None:
        """Create the tables, with the library's own code, and connect."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def commit(self, writes: Writes) -> None:
        """Return once the rows are durable."""


async def step(number: int) -> int:
    """Do what every contestant's step does: nothing."""
    return number + 1


def folded(start: Row, end: Row) -> Row:
    """Return the row of a workflow that has ended when it is inserted."""
    row = list(start)
    row[_STATE], row[_OUTPUT], row[_UPDATED], _ = end
    return tuple(row)


def _encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _now_us() -> int:
    return time.time_ns() // 1000


def _start_row(workflow_id: str, data: bytes) -> Row:
    row = _TEMPLATE.copy()
    row[_ID], row[_INPUT] = workflow_id, data
    row[_CREATED] = row[_UPDATED] = _now_us()
    return tuple(row)


def _step_row(workflow_id: str, place: int, output: bytes) -> Row:
    row: list[Any] = _STEP_TEMPLATE.copy()
    row[_STEP_ID], row[_STEP_NUMBER], row[_STEP_OUTPUT] = workflow_id, place, output
    row[_FINISHED] = _now_us()
    return tuple(row)


def _end_row(workflow_id: str, output: bytes) -> Row:
    return ("SUCCESS", output, _now_us(), workflow_id)
