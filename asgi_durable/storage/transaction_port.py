"""The part of the port to a storage adapter that the application's own transactions are."""

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
    """The place in a step log that a transaction will fill."""

    workflow_id: str
    step_number: int
    executor_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSlot:
    """A request that a transaction will claim and answer.

    Attributes:
        workflow: The row that claims it, pending.
        wait_seconds: For how long at most to wait for another transaction that has its id.
    """

    workflow: WorkflowRecord
    wait_seconds: float


class StoredTransaction(Protocol):
    """An open database transaction of the application."""

    session: AsyncSession

    async def record(self, step: StepRecord) -> None:
        """Write the step's record into this transaction; the last thing before its commit."""


class RequestTransaction(Protocol):
    """An open database transaction that claims a request, and will answer it."""

    session: AsyncSession

    async def flush(self) -> None:
        """Write what the application's session holds; nothing of its own follows.

        Raises:
            DurableUsageError: The application has ended the transaction itself.
        """

    async def answer(self, end: FinishWorkflow) -> None:
        """Write the answer, and what follows it; the last thing before the commit.

        Raises:
            SlotTakenError: The executor is not alive any more.
            DurableUsageError: As for :meth:`flush`.
        """


class BlockingTransaction(Protocol):
    """An open database transaction of code that is not async, for one thread."""

    session: Session

    def record(self, step: StepRecord) -> None:
        """Write the step's record into this transaction; the last thing before its commit."""


class BlockingRequestTransaction(Protocol):
    """The same for code that is not async, used by one thread at a time."""

    session: Session

    def flush(self) -> None:
        """See :meth:`RequestTransaction.flush`."""

    def answer(self, end: FinishWorkflow) -> None:
        """See :meth:`RequestTransaction.answer`."""


class Transactions(Protocol):
    """Database transactions that the application's code runs in."""

    def transaction(
        self, slot: StepSlot | None, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[StoredTransaction]:
        """Open a transaction, commit it at the end, roll it back on any exception.

        With a *slot* it is checked that the executor owns the workflow and that nothing is
        recorded at that place: before the application's code runs, and in a way that holds
        at the COMMIT when the record is written. Of twins in a race one commits.

        Args:
            slot: Its place in a step log, ``None`` for a plain transaction.
            isolation_level: As SQL names it; the database's default with ``None``.

        Raises:
            SlotTakenError: The place is taken, or the workflow is not the executor's.
            StorageUnavailableError: The database failed; nothing is known to be committed.
            GivenUpError: The transaction is rolled back, and is to be run again.
            DurableUsageError: The database does not know the isolation level.
        """

    def blocking_transaction(
        self, slot: StepSlot | None, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingTransaction]:
        """Do the same in the calling thread, for code that is not async.

        No event loop runs in the thread, and none may be blocked by it. Any number of threads
        may be here at once.
        """

    def request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractAsyncContextManager[RequestTransaction]:
        """Open a transaction that claims a request, as :meth:`transaction` does for a step.

        The request is claimed before the application's code runs. Nobody sees that before the
        COMMIT: it is finished then, and after a rollback it was never there. A twin waits for
        either, here; nobody else's commit does.

        Args:
            slot: The request.
            isolation_level: As SQL names it; the database's default with ``None``.

        Raises:
            SlotTakenError: There is a workflow with the request's id.
            SlotBusyError: A transaction that is not over has it, for too long.
            StorageUnavailableError: As for :meth:`transaction`.
            DurableUsageError: The same.
        """

    def blocking_request_transaction(
        self, slot: RequestSlot, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingRequestTransaction]:
        """Do the same in the calling thread; another one may go on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationSlot:
    """The place in a step log that a transaction in another database will fill.

    Attributes:
        execution: Which execution of the workflow it belongs to, from 1.
    """

    workflow_id: str
    step_number: int
    execution: int


class ApplicationDatabase(Protocol):
    """A database of the application's own, apart from the step log's.

    An adapter that has one offers it as ``application_database(url)``, a class method.
    """

    @property
    def name(self) -> str:
        """How messages name the database; without a password."""

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

        Nobody knows here who owns the workflow; of all that ever write a record at a place,
        the first one commits. A failure makes way for a later execution.
        """

    def blocking_transaction(
        self, slot: ApplicationSlot | None, *, isolation_level: str | None = None
    ) -> AbstractContextManager[BlockingTransaction]:
        """Do the same in the calling thread, as :meth:`Transactions.blocking_transaction`."""

    async def find(self, slot: ApplicationSlot) -> StepRecord | None:
        """Return what is recorded at a place: a success, or a failure of this execution.

        Raises:
            SlotTakenError: A later execution has failed there.
        """

    async def record_failure(self, step: StepRecord, slot: ApplicationSlot) -> None:
        """Record that the transaction failed, so that nobody commits it later on.

        Raises:
            SlotTakenError: Something is recorded there.
        """


class SlotTakenError(Exception):
    """The step is already recorded, or its workflow belongs to somebody else."""


class SlotBusyError(Exception):
    """A transaction that is not over has claimed the same request."""


class GivenUpError(StorageUnavailableError):
    """The database has rolled the transaction back, and may not the next time.

    It was in another one's way (a serialization failure, a deadlock), or what its connection had
    cached was of tables that were changed meanwhile. The database's own error is the cause.
    """
