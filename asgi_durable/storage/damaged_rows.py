"""Damaged rows: rows with values that no version of the library has written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from asgi_durable.storage.records import (
    DamagedRowError,
    StepRecord,
    StoredRun,
    WorkflowRecord,
)

__all__ = ["DamagedRows", "StoredLogs"]

logger = logging.getLogger(__name__)

RecordT = TypeVar("RecordT")

MOST_REMEMBERED = 10_000


class DamagedRows:
    """Logs damaged rows, each once, so that the process can work on with the others."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}

    def set_aside(self, error: DamagedRowError) -> None:
        """Log that this process ignores a row."""
        text = str(error)
        if text in self._seen:
            return
        self._seen[text] = None
        if len(self._seen) > MOST_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        logger.error("Set aside: %s", text)

    def read(self, decode: Callable[[Any], RecordT], row: Any) -> RecordT:
        """Return the record of a row.

        Raises:
            DamagedRowError: The row is damaged; it is logged.
        """
        try:
            return decode(row)
        except DamagedRowError as error:
            self.set_aside(error)
            raise

    def sound(self, decode: Callable[[Any], RecordT], rows: Iterable[Any]) -> list[RecordT]:
        """Return the records of sound rows, and log the others."""
        records = []
        for row in rows:
            with contextlib.suppress(DamagedRowError):
                records.append(self.read(decode, row))
        return records

    def sound_ids(self, table: str, ids: Iterable[object]) -> Iterator[str]:
        """Yield the ids that are text, and log the others."""
        for one in ids:
            if isinstance(one, str):
                yield one
            else:
                self.set_aside(DamagedRowError(table, one, "its id is no text"))


class StoredLogs:
    """Assembles the step logs of several workflows; a damaged row spoils only its own log.

    Args:
        damaged: Logs the damaged rows.
    """

    def __init__(self, damaged: DamagedRows) -> None:
        self._damaged = damaged
        self._steps: dict[object, list[StepRecord]] = {}
        self._children: dict[object, list[WorkflowRecord]] = {}
        self._damage: dict[object, DamagedRowError] = {}

    def add_step(self, workflow_id: object, decode: Callable[[Any], StepRecord], row: Any) -> None:
        """Add a row to a workflow's steps."""
        self._add(self._steps, workflow_id, decode, row)

    def add_child(
        self, workflow_id: object, decode: Callable[[Any], WorkflowRecord], row: Any
    ) -> None:
        """Add a row to a workflow's children."""
        self._add(self._children, workflow_id, decode, row)

    def runs(self, decode: Callable[[Any], WorkflowRecord], rows: Iterable[Any]) -> list[StoredRun]:
        """Return the step logs of the workflows whose own row is sound."""
        workflows: list[WorkflowRecord] = []
        for row in rows:
            with contextlib.suppress(DamagedRowError):
                workflows.append(self._damaged.read(decode, row))
        return [
            StoredRun(
                workflow=workflow,
                steps=tuple(self._steps.get(workflow.workflow_id, ())),
                children=tuple(self._children.get(workflow.workflow_id, ())),
                damage=self._damage.get(workflow.workflow_id),
            )
            for workflow in workflows
        ]

    def _add(
        self,
        records: dict[object, list[RecordT]],
        workflow_id: object,
        decode: Callable[[Any], RecordT],
        row: Any,
    ) -> None:
        try:
            records.setdefault(workflow_id, []).append(self._damaged.read(decode, row))
        except DamagedRowError as error:
            self._damage[workflow_id] = error
