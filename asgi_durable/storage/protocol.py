"""The port between the engine and a storage adapter.

An adapter is a class, called with the URL, that an entry point of the group
``asgi_durable.storage`` names under the URL's scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from asgi_durable.storage.records import ResponseRecord, StepRecord, StoredRun, WorkflowRecord
from asgi_durable.storage.writes import Outcome, Write

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["Lifecycle", "StepLog", "StepSlot", "Storage", "StoredTransaction", "Transactions"]


class Lifecycle(Protocol):
    """Opening and closing, and whose workflows are whose."""

    async def open(self, executor_id: str) -> None:
        """Connect, create or migrate the tables, and take over what dead executors left.

        Afterwards every PENDING workflow of a function belongs to *executor_id*, and every
        PENDING request belongs to nobody, until its retry claims it.

        Raises:
            StorageError: The database cannot be used; the message names it.
        """

    async def close(self) -> None:
        """Give up the executor and disconnect; the writes under way are finished first."""


class StepLog(Protocol):
    """Workflows, their steps and answers."""

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        """Apply the writes in one database transaction, and return an outcome for each.

        The writes of a batch are in the order in which they were submitted. What is DONE is
        durable when this returns. A write that the database cannot hold is REJECTED alone.
        Every write of an executor that is not alive any more is FENCED.

        Raises:
            StorageError: Nothing is known to be written. ``StorageUnavailableError`` if the
                same batch may succeed later.
        """

    async def get_workflow(self, workflow_id: str) -> WorkflowRecord | None:
        """Return a workflow's row, ``None`` if there is none."""

    async def get_response(self, workflow_id: str) -> ResponseRecord | None:
        """Return the answer of a finished request, ``None`` if there is none."""

    async def load_runs(self, workflow_ids: Sequence[str]) -> list[StoredRun]:
        """Return all that is recorded of these workflows; unknown ids are left out."""

    async def list_pending(self, executor_id: str, *, after: str, limit: int) -> list[str]:
        """Return ids of the executor's PENDING workflows of functions, in order of id.

        Args:
            executor_id: Whose workflows.
            after: Only ids greater than this; ``""`` for the first page.
            limit: At most this many.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSlot:
    """The place in a step log that a transaction will fill."""

    workflow_id: str
    step_number: int
    executor_id: str


class StoredTransaction(Protocol):
    """An open database transaction of the application."""

    session: AsyncSession

    async def record(self, step: StepRecord) -> None:
        """Write the step's record into this transaction; the last thing before its commit."""


class Transactions(Protocol):
    """Database transactions that the application's code runs in."""

    def transaction(self, slot: StepSlot | None) -> AbstractAsyncContextManager[StoredTransaction]:
        """Open a transaction, commit it at the end, roll it back on any exception.

        With a *slot* it is checked first, inside the transaction, that the executor owns the
        workflow and that nothing is recorded at that place: of twins in a race one commits.

        Raises:
            SlotTakenError: The place is taken, or the workflow is not the executor's.
            StorageUnavailableError: The database failed; nothing is known to be committed.
        """


class Storage(Lifecycle, StepLog, Transactions, Protocol):
    """All that the engine needs of a database."""


class SlotTakenError(Exception):
    """The step is already recorded, or its workflow belongs to somebody else."""
