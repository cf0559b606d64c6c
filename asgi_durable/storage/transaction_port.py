"""The Protocols for database transactions of the application, a part of the storage port.

The application's rows and the record of the step (or the response to the request) are committed
together: either both are durable or neither is.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from asgi_durable.errors import StorageUnavailableError
from asgi_durable.storage.records import StepRecord, WorkflowRecord
from asgi_durable.storage.writes import FinishWorkflow

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = [
    "ApplicationDatabase",
    "ApplicationSlot",
    "BlockingRequestTransaction",
    "BlockingTransaction",
    "GivenUpError",
    "RequestSlot",
    "RequestTransaction",
    "SlotBusyError",
    "SlotTakenError",
    "StepSlot",
    "StoredTransaction",
    "Transactions",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSlot:
    """The number in a workflow's step log that the record of a transaction will have."""

    workflow_id: str
    step_number: int
    executor_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSlot:
    """A request that a transaction will claim, and whose response it will store.

    Attributes:
        workflow: The row that claims it, PENDING.
        wait_seconds: The longest wait for another open transaction that has claimed it.
    """

    workflow: WorkflowRecord
    wait_seconds: float


class StoredTransaction(Protocol):
    """An open database transaction of the application."""

    session: AsyncSession

    async def record(self, step: StepRecord) -> None:
        """Write the step's record into this transaction; called last before the commit."""


class RequestTransaction(Protocol):
    """An open database transaction that has claimed a request, and will store its response."""

    session: AsyncSession

    async def flush(self) -> None:
        """Flush the application's session; the application writes nothing after this.

        Raises:
            DurableUsageError: The application has ended the transaction itself.
        """

    async def store_response(self, end: FinishWorkflow) -> None:
        """Store the response and start the followers; called last before the commit.

        Raises:
            SlotTakenError: The executor is not alive any more.
            DurableUsageError: As for :meth:`flush`.
        """


class BlockingTransaction(Protocol):
    """An open database transaction of a ``def`` function, used by one thread."""

    session: Session

    def record(self, step: StepRecord) -> None:
        """Write the step's record into this transaction; called last before the commit."""


class BlockingRequestTransaction(Protocol):
    """A :class:`RequestTransaction` of a ``def`` function, used by one thread at a time."""

    session: Session

    def flush(self) -> None:
        """See :meth:`RequestTransaction.flush`."""

    def store_response(self, end: FinishWorkflow) -> None:
        """See :meth:`RequestTransaction.answer`."""


class Transactions(Protocol):
    """Transactions of the application in the database that holds the step log."""

    def transaction(
        self, slot: StepSlot | None, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[StoredTransaction]:
        """Open a transaction; commit it at the end, roll it back on any exception.

        With a *slot*, the executor must own the workflow, and its number must have no record.
        Both are checked before the application's code runs, and again when the record is
        written, in a way that holds until the COMMIT. If two transactions race for the same
        slot, one of them commits.

        Args:
            slot: The step, ``None`` for a transaction without a record.
            isolation_level: A level as SQL spells it, for example ``"SERIALIZABLE"``; ``None``
                for the database's default.

        Raises:
            SlotTakenError: The step is recorded, or the executor does not own the workflow.
            StorageUnavailableError: The database failed; it is not known whether the transaction
                was committed.
            GivenUpError: The database rolled the transaction back; it should be run again.
            DurableUsageError: The database does not know the isolation level.
        """

    def blocking_transaction(
        self, slot: StepSlot | None, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingTransaction]:
        """Open a transaction as :meth:`transaction` does, in the calling thread.

        No event loop runs in this thread, and the adapter must not block one. Any number of
        threads may have a transaction at once.
        """

    def request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[RequestTransaction]:
        """Open a transaction that claims a request and stores its response.

        The request is claimed before the application's code runs. The claim is not visible to
        others before the COMMIT, and the request is finished then; after a rollback there is no
        trace of it. A duplicate that claims the same request waits here for either. No other
        commit waits for this transaction.

        Args:
            slot: The request.
            isolation_level: As for :meth:`transaction`.

        Raises:
            SlotTakenError: There is a workflow with the request's id.
            SlotBusyError: An open transaction has claimed the request, and did not end within
                the slot's ``wait_seconds``.
            StorageUnavailableError: As for :meth:`transaction`.
            DurableUsageError: As for :meth:`transaction`.
        """

    def blocking_request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingRequestTransaction]:
        """Open a transaction as :meth:`request_transaction` does, in the calling thread.

        Later calls of its methods may come from another thread.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationSlot:
    """The number in a step log that the record of a transaction in another database has.

    Attributes:
        execution: The number of the workflow's run, from 1.
    """

    workflow_id: str
    step_number: int
    execution: int


class ApplicationDatabase(Protocol):
    """A database of the application's that does not hold the step log.

    An adapter that supports it has a class method ``application_database(url)``, which returns
    one.
    """

    @property
    def name(self) -> str:
        """The name of the database for messages, without user and password."""

    async def open(self) -> None:
        """Connect, and create the table of records unless it is there.

        Raises:
            StorageError: The database cannot be used; the message names it.
        """

    async def close(self) -> None:
        """Disconnect."""

    def transaction(
        self, slot: ApplicationSlot | None, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[StoredTransaction]:
        """Open a transaction, as :meth:`Transactions.transaction` does.

        This database does not know the owner of the workflow. Of all transactions that ever
        record the same step, the first one commits and the others raise ``SlotTakenError``; but
        the record of a failure is replaced by that of a later run.
        """

    def blocking_transaction(
        self, slot: ApplicationSlot | None, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingTransaction]:
        """Open a transaction as :meth:`transaction` does, in the calling thread."""

    async def find(self, slot: ApplicationSlot) -> StepRecord | None:
        """Return the record of a step: a success, or a failure of this run.

        Raises:
            SlotTakenError: The record is a failure of a later run.
        """

    async def record_failure(self, step: StepRecord, slot: ApplicationSlot) -> None:
        """Record that the transaction failed, so that no other run of it commits.

        Raises:
            SlotTakenError: The step has a record.
        """


class SlotTakenError(Exception):
    """The step is already recorded, or the executor does not own its workflow."""


class SlotBusyError(Exception):
    """Another open transaction has claimed the same request."""


class GivenUpError(StorageUnavailableError):
    """The database rolled the transaction back, and may commit it the next time.

    It conflicted with another transaction (a serialization failure, a deadlock), or its connection
    had cached a plan for tables that have changed since. The database's error is the cause.
    """
