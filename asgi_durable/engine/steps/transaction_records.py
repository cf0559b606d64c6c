"""The record of a transaction: in the step log, or beside the application's data."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.stopping import OwnedElsewhereError
from asgi_durable.storage.records import StepRecord
from asgi_durable.storage.transaction_port import (
    ApplicationDatabase,
    ApplicationSlot,
    BlockingTransaction,
    SlotTakenError,
    StepSlot,
    StoredTransaction,
)

__all__ = [
    "SameDatabase",
    "SeparateDatabase",
    "TransactionRecords",
    "log_name",
    "transaction_records",
]


class TransactionRecords(Protocol):
    """Commits and finds the record of one transaction of a run."""

    def open(self, isolation_level: str | None) -> AbstractAsyncContextManager[StoredTransaction]:
        """Open the transaction; its record will commit with it.

        Raises:
            SlotTakenError: Its number is recorded already, or the run does not own the workflow.
        """

    def open_blocking(
        self, isolation_level: str | None
    ) -> AbstractContextManager[BlockingTransaction]:
        """Do the same in the calling thread."""

    async def find_early(self) -> StepRecord | None:
        """Return the record, where only a query can tell before the transaction opens."""

    async def find(self) -> StepRecord | None:
        """Return the record, ``None`` if there is none.

        Raises:
            OwnedElsewhereError: Another executor owns the workflow.
        """

    async def commit_failure(self, step: StepRecord) -> None:
        """Make sure that no process commits the transaction after its failure is recorded.

        Raises:
            SlotTakenError: Its number is recorded already.
        """

    def add_to_log(self, step: StepRecord) -> None:
        """Submit the record to the step log, unless it is there.

        Raises:
            RunStopped: The run must not continue, or is over.
        """


def log_name(run: Run, transaction: str) -> str:
    """Return how log lines name a transaction of a run."""
    return f"The transaction {transaction!r} of workflow {run.workflow_id} ({run.workflow.name})"


def transaction_records(run: Run, number: int) -> TransactionRecords:
    """Return where the record of a run's transaction goes."""
    application = run.services.application
    if application is None:
        return SameDatabase(run, number)
    return SeparateDatabase(run, number, application)


class SameDatabase:
    """The application's data and the step log are in one database, and commit together."""

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        self._slot = StepSlot(
            workflow_id=run.workflow_id, step_number=number, executor_id=run.executor_id
        )

    def open(self, isolation_level: str | None) -> AbstractAsyncContextManager[StoredTransaction]:
        storage = self._run.services.storage
        return storage.transaction(self._slot, isolation_level=isolation_level)

    def open_blocking(
        self, isolation_level: str | None
    ) -> AbstractContextManager[BlockingTransaction]:
        storage = self._run.services.storage
        return storage.blocking_transaction(self._slot, isolation_level=isolation_level)

    async def find_early(self) -> StepRecord | None:
        # Opening the transaction checks that.
        return None

    async def find(self) -> StepRecord | None:
        run = self._run
        for stored in await run.services.storage.load_runs([run.workflow_id]):
            if stored.workflow.executor_id == run.executor_id:
                for step in stored.sound().steps:
                    if step.step_number == self._slot.step_number:
                        return step
        raise OwnedElsewhereError(run.workflow_id)

    async def commit_failure(self, step: StepRecord) -> None:
        # The step log itself refuses a late commit.
        del step

    def add_to_log(self, step: StepRecord) -> None:
        self._run.mark_progress()
        if step.error is not None:
            self._run.submit_step(step)


class SeparateDatabase:
    """The application has a database of its own; the record goes there, and then to the log.

    Invariant: the first record there decides. A process that dies between the two commits
    leaves a record that the next execution finds; a late process finds it as well.
    """

    def __init__(self, run: Run, number: int, database: ApplicationDatabase) -> None:
        self._run = run
        self._database = database
        self._slot = ApplicationSlot(
            workflow_id=run.workflow_id, step_number=number, execution=run.workflow.attempts
        )

    def open(self, isolation_level: str | None) -> AbstractAsyncContextManager[StoredTransaction]:
        return self._database.transaction(self._slot, isolation_level=isolation_level)

    def open_blocking(
        self, isolation_level: str | None
    ) -> AbstractContextManager[BlockingTransaction]:
        return self._database.blocking_transaction(self._slot, isolation_level=isolation_level)

    async def find_early(self) -> StepRecord | None:
        return await self.find()

    async def find(self) -> StepRecord | None:
        try:
            return await self._database.find(self._slot)
        except SlotTakenError as error:
            raise OwnedElsewhereError(self._run.workflow_id) from error

    async def commit_failure(self, step: StepRecord) -> None:
        await self._database.record_failure(step, self._slot)

    def add_to_log(self, step: StepRecord) -> None:
        self._run.submit_step(step)
