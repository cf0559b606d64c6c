"""The Protocols that a storage adapter implements for the engine.

An adapter is a class with all methods of :class:`Storage`. It is called with the URL of a database.
An entry point of the group ``asgi_durable.storage``, named as the URL's scheme, points to it::

    [project.entry-points."asgi_durable.storage"]
    mysql = "my_package.storage:MySQLStorage"

``tests/storage/`` is the test suite for adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from asgi_durable.storage.records import (
    ChunkRecord,
    ResponseRecord,
    StoredProgress,
    StoredRun,
    StoredSecret,
    TakenWorkflow,
    WorkflowRecord,
)
from asgi_durable.storage.transaction_port import Transactions
from asgi_durable.storage.writes import Outcome, Write

__all__ = [
    "PAGE_BYTES",
    "PUT_OFF_US",
    "Beat",
    "Executors",
    "Lifecycle",
    "Runnable",
    "Secrets",
    "StepLog",
    "Storage",
]

# How much later an expired request is considered again if it cannot be forgotten yet.
PUT_OFF_US = 5 * 60 * 1_000_000
# How much of a recorded stream one call reads; a single larger chunk is read whole.
PAGE_BYTES = 256 * 1024


class Lifecycle(Protocol):
    """Opening and closing the storage.

    The methods of an open storage may be called on any event loop, also on several at once.
    """

    @property
    def name(self) -> str:
        """The name of the database for messages, without user and password."""

    async def open(self) -> None:
        """Connect, and create or migrate the tables.

        Any number of processes may do so at once.

        Raises:
            StorageError: The database cannot be used; the message names it.
        """

    async def close(self) -> None:
        """Finish the writes that have begun, and disconnect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """The workflows that a process can run without their caller.

    Attributes:
        names: The names of the functions that it knows.
        bound_names: The names of those that need the request they belong to. Such a workflow is
            not runnable if it has a parent.
        excluded_ids: Workflows that it could not run before.
        requests: True if requests are runnable too, provided that they have an input and their
            owner died or left. A request that was released waits for its client.
    """

    names: frozenset[str]
    bound_names: frozenset[str] = frozenset()
    excluded_ids: frozenset[str] = frozenset()
    requests: bool = False


@dataclass(frozen=True, slots=True)
class Beat:
    """The result of a heartbeat.

    Attributes:
        is_alive: False if another executor has declared this one dead: it owns nothing any more.
        has_orphans: True if a runnable workflow is free.
    """

    is_alive: bool
    has_orphans: bool


class Executors(Protocol):
    """The living executors, and the workflows that they own.

    An executor is one start of one process. It owns workflows while it is alive. An executor that
    is declared dead writes nothing any more, and never becomes alive again.

    Attributes:
        beat_interval_seconds: The interval at which :meth:`beat` should be called. A call costs
            at most one statement if nothing has happened.
    """

    beat_interval_seconds: float

    async def register(
        self, executor_id: str, *, lease_seconds: float, on_message: Callable[[str], None]
    ) -> None:
        """Register an executor as alive.

        Args:
            executor_id: A new id, never used before.
            lease_seconds: How long it counts as alive after its last :meth:`beat`.
            on_message: Called, on any thread, with each message for this executor from
                :meth:`send`.
        """

    async def beat(self, executor_id: str, *, lease_seconds: float, runnable: Runnable) -> Beat:
        """Renew the lease if that is due, and declare executors dead whose lease has ended.

        An executor whose process is known to have ended is declared dead at once.
        """

    async def is_missing(self, executor_id: str) -> bool:
        """Return True if an executor may be dead, so that nobody should wait for it.

        It is not alive, its lease has ended, or its process has ended as far as the database can
        tell. Until :meth:`beat` declares it dead it may still come back.
        """

    async def take_over(
        self, executor_id: str, *, runnable: Runnable, limit: int, suspects: bool
    ) -> list[TakenWorkflow]:
        """Make an executor the owner of free workflows, and count one more run of each.

        If the last owner died (and did not just leave), its death is counted in ``crashes``: the
        count is 1 if the log has new entries since the crash before, else one more than it was. A
        workflow with a count of two or more is a *suspect*. Workflows that another executor takes
        at the same time are skipped.

        Args:
            executor_id: The new owner. Nothing is taken if it is not alive.
            runnable: The workflows that it can run.
            limit: At most this many are taken, in order of id.
            suspects: True to take suspects only, False to take all but suspects.

        Returns:
            The workflows that it owns now, in order of id.
        """

    async def retire(self, executor_id: str) -> None:
        """End an executor that stops by itself; its workflows are free at once."""

    async def send(self, executor_id: str | None, message: str) -> None:
        """Send a short message to an executor, or to all others if *executor_id* is ``None``.

        The message is a hint only: it may be lost, and an adapter that has no way to send it
        does nothing.
        """


class StepLog(Protocol):
    """Workflows, their steps, and the responses to requests."""

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        """Apply the writes in one database transaction, and return an outcome for each.

        The writes are in the order in which they were submitted; see
        :func:`asgi_durable.storage.write_order.write_order`. A write that is DONE is durable
        when this returns. A write that the database cannot hold is REJECTED, and the others are
        applied. Every write of an executor that is not alive is FENCED: the check and the writes
        are in one transaction, and no executor is declared dead in between.

        Raises:
            StorageError: It is not known whether the batch was written.
                ``StorageUnavailableError`` if the same batch may succeed later.
        """

    async def get_workflow(self, workflow_id: str) -> WorkflowRecord | None:
        """Return a workflow's row, ``None`` if there is none.

        Raises:
            StorageError: The row cannot be read. Every method that returns one row raises so.
        """

    async def get_progress(self, workflow_id: str) -> StoredProgress | None:
        """Return the progress of a workflow, ``None`` if there is no such workflow."""

    async def get_response(self, workflow_id: str) -> ResponseRecord | None:
        """Return the response to a finished request, ``None`` if there is none."""

    async def read_chunks(self, workflow_id: str, after: int) -> list[ChunkRecord]:
        """Return the next chunks of a recorded stream, in order; ``[]`` if there are none yet.

        These are the chunks that end within ``PAGE_BYTES`` behind the offset *after*. If there
        is no such chunk, it is the first one behind *after*.
        """

    async def load_runs(self, workflow_ids: Sequence[str]) -> list[StoredRun]:
        """Return all records of these workflows; unknown ids are left out.

        A workflow whose own row cannot be read is left out too, and logged. If a row of its steps
        or children cannot be read, the result has the error as ``damage``.
        """

    async def list_cancelled(self, workflow_ids: Sequence[str]) -> list[str]:
        """Return the ids of those workflows that are CANCELLED; unknown ids are left out."""

    async def list_pending(self, executor_id: str, *, after: str, limit: int) -> list[str]:
        """Return ids of the executor's PENDING workflows, requests included, in order of id.

        Args:
            executor_id: The owner.
            after: Only greater ids are returned; ``""`` for the first page.
            limit: At most this many are returned.
        """

    async def list_unknown(self, names: Collection[str], *, limit: int) -> list[WorkflowRecord]:
        """Return PENDING workflows without a living owner whose function is not among *names*.

        Requests are left out.

        Args:
            names: The names of known functions.
            limit: At most this many are returned, in order of id.
        """

    async def forget_expired(self, now_us: int, *, abandoned_before_us: int, limit: int) -> int:
        """Forget expired requests in one transaction, those that expired first before others.

        - A finished request is deleted from its response's ``forgotten_at_us`` on, with its steps,
          its response and its chunks, and the workflows that it called or started with theirs.
        - From ``expires_at_us`` until then it is a *tombstone*. Its row stays, but its steps, its
          chunks and the workflows below it are deleted. Its response has the status code
          ``TOMBSTONE_STATUS``, headers ``[]``, no body, and expires at ``forgotten_at_us``.
        - An abandoned request, which waits for its retry and has no living owner, is deleted if
          it has not changed since *abandoned_before_us*.

        A request stays if a workflow below it is PENDING. Its response then expires ``PUT_OFF_US``
        after *now_us*; an abandoned one is considered again that much later. Requests that
        another process forgets at the same time are skipped.

        Args:
            now_us: The time, in microseconds since 1970, UTC.
            abandoned_before_us: The time of the last change before which a request counts as
                abandoned, in the same unit.
            limit: At most this many requests are handled.

        Returns:
            How many were deleted, made a tombstone or put off. If these are fewer than *limit*,
            no others are due now, or another process handles them.
        """

    async def forget_request(self, workflow_id: str, now_us: int) -> bool:
        """Forget one finished request if it is expired, as :meth:`forget_expired` does.

        Returns:
            False if it stays: a workflow below it is PENDING, or it is a tombstone. True if its
            key may be claimed again: it is deleted, or was deleted before and another request
            has the key now.
        """


class Secrets(Protocol):
    """The secret that only processes with access to the database know."""

    async def read_secret(self) -> StoredSecret:
        """Return the secret with which the ids of requests are made.

        :meth:`Lifecycle.open` makes it if there is none. All processes get the same secret, also
        if several open a new database at once, and it never changes. ``added_later`` is True
        for a database that had requests before it had a secret, until none of them is left.

        Raises:
            StorageError: The storage failed, or the secret was deleted.
        """


class Storage(Lifecycle, Executors, StepLog, Secrets, Transactions, Protocol):
    """A storage adapter: everything that the engine asks of a database."""
