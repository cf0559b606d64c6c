"""The port between the engine and a storage adapter.

An adapter is a class, called with the URL, that an entry point of the group
``asgi_durable.storage`` names under the URL's scheme.
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

# For how long a request is left alone that cannot be forgotten yet.
PUT_OFF_US = 5 * 60 * 1_000_000
# How much of a recorded stream is read at a time, but for a piece that is larger.
PAGE_BYTES = 256 * 1024


class Lifecycle(Protocol):
    """Opening and closing.

    An open storage may be called on any event loop, on several at once as well.
    """

    @property
    def name(self) -> str:
        """How messages name the database; without a password."""

    async def open(self) -> None:
        """Connect, and create or migrate the tables; any number of processes may at once.

        Raises:
            StorageError: The database cannot be used; the message names it.
        """

    async def close(self) -> None:
        """Disconnect; the writes under way are finished first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """Which workflows a process can run without their caller.

    Attributes:
        names: The functions that it knows.
        bound_names: Those among them that need their request: not where they are its children.
        excluded_ids: Workflows that it has tried in vain.
        requests: True for requests as well: those that have an input, and whose owner died or
            left. One that was released waits for its client.
    """

    names: frozenset[str]
    bound_names: frozenset[str] = frozenset()
    excluded_ids: frozenset[str] = frozenset()
    requests: bool = False


@dataclass(frozen=True, slots=True)
class Beat:
    """What an executor learns with each beat.

    Attributes:
        is_alive: False if others have declared it dead: it owns nothing any more.
        has_orphans: True if a runnable workflow is free.
    """

    is_alive: bool
    has_orphans: bool


class Executors(Protocol):
    """Who is alive, and whose workflows are whose.

    An executor is one incarnation of a process. While it is alive it owns its workflows;
    once it is declared dead it can write nothing, and never comes back to life.

    Attributes:
        beat_interval_seconds: How often :meth:`beat` should be called. While nothing
            happens a call is one statement at most.
    """

    beat_interval_seconds: float

    async def register(
        self, executor_id: str, *, lease_seconds: float, on_message: Callable[[str], None]
    ) -> None:
        """Enter an executor among the living, for as long as it beats.

        Args:
            executor_id: A new one, never used before.
            lease_seconds: How long it counts as alive after its last beat.
            on_message: Called with what others :meth:`send` it, on any thread.
        """

    async def beat(self, executor_id: str, *, lease_seconds: float, runnable: Runnable) -> Beat:
        """Renew the lease when that is due, and declare dead whose lease has run out.

        An executor whose process is known to be gone is declared dead sooner.
        """

    async def is_missing(self, executor_id: str) -> bool:
        """Tell whether an executor may be dead, so that nobody should count on it.

        It is not alive, its lease has run out, or its process is gone as far as the database
        can tell. One that :meth:`beat` does not declare dead yet may come back.
        """

    async def take_over(
        self, executor_id: str, *, runnable: Runnable, limit: int, suspects: bool
    ) -> list[TakenWorkflow]:
        """Make free workflows that can be run the executor's, and count an execution of each.

        Where the last owner died, and not just left, its death is counted in ``crashes``: 1
        if the log has entries that were not there at the crash before, else one more. A
        workflow with two or more is a *suspect*. What others take at the same time is left
        to them.

        Args:
            executor_id: The new owner. Nothing is taken if it is not alive.
            runnable: Which ones.
            limit: At most this many, in order of id.
            suspects: True for suspects only, False for all others.

        Returns:
            What is the executor's now, in order of id, and for how long it had been free.
        """

    async def retire(self, executor_id: str) -> None:
        """Take an executor out of the living; its workflows are free at once."""

    async def send(self, executor_id: str | None, message: str) -> None:
        """Send a short message to an executor, to all others if that is ``None``.

        A hint only: it may get lost, and an adapter without a way to do it does nothing.
        """


class StepLog(Protocol):
    """Workflows, their steps and answers."""

    async def commit(self, batch: Sequence[Write]) -> list[Outcome]:
        """Apply the writes in one database transaction, and return an outcome for each.

        The writes of a batch are in the order in which they were submitted. What is DONE is
        durable when this returns. A write that the database cannot hold is REJECTED alone.
        Every write of an executor that is not alive any more is FENCED, and that still
        holds at the COMMIT.

        Raises:
            StorageError: Nothing is known to be written. ``StorageUnavailableError`` if the
                same batch may succeed later.
        """

    async def get_workflow(self, workflow_id: str) -> WorkflowRecord | None:
        """Return a workflow's row, ``None`` if there is none.

        Raises:
            StorageError: The row cannot be read; here and for all that return one.
        """

    async def get_progress(self, workflow_id: str) -> StoredProgress | None:
        """Return how far a workflow is, ``None`` if there is none with this id."""

    async def get_response(self, workflow_id: str) -> ResponseRecord | None:
        """Return the answer of a finished request, ``None`` if there is none."""

    async def read_pieces(self, workflow_id: str, after: int) -> list[ChunkRecord]:
        """Return the next pieces of a recorded stream, in order; none if there are no more yet.

        They are those that end within ``PAGE_BYTES`` behind the offset *after*; if there are
        none, the first one behind it.
        """

    async def load_runs(self, workflow_ids: Sequence[str]) -> list[StoredRun]:
        """Return all that is recorded of these workflows; unknown ids are left out.

        So is one whose row cannot be read, with a line in the log. Where that is a row of its
        steps or children, ``damage`` says so.
        """

    async def list_cancelled(self, workflow_ids: Sequence[str]) -> list[str]:
        """Return which of these workflows are CANCELLED; unknown ids are left out."""

    async def list_pending(self, executor_id: str, *, after: str, limit: int) -> list[str]:
        """Return ids of the executor's PENDING workflows, requests included, in order of id.

        Args:
            executor_id: Whose workflows.
            after: Only ids greater than this; ``""`` for the first page.
            limit: At most this many.
        """

    async def list_unknown(self, names: Collection[str], *, limit: int) -> list[WorkflowRecord]:
        """Return PENDING workflows that no living executor owns, of functions of other names.

        Requests are left out.

        Args:
            names: The functions that are known.
            limit: At most this many, in order of id.
        """

    async def forget_expired(self, now_us: int, *, abandoned_before_us: int, limit: int) -> int:
        """Forget requests whose time is over, in one transaction; the longest expired first.

        One that is finished, from its answer's ``forgotten_at_us`` on, is deleted with all
        below it: its steps, its answer and the pieces of that, and the workflows that it has
        called or started, with theirs. From ``expires_at_us`` until then it is a *tombstone*:
        its own row stays, and of its answer the time, with ``TOMBSTONE_STATUS``, headers ``[]``
        and neither body nor pieces. One that waits for its retry, as nobody alive owns it, is
        deleted if it has not changed for long.

        Where a workflow below it is PENDING a request stays: its answer expires
        ``PUT_OFF_US`` after *now_us*, or it counts as abandoned that much later. What others
        are at this very moment is left to them.

        Args:
            now_us: Microseconds since 1970, UTC.
            abandoned_before_us: Requests that wait for their retry are forgotten if they have
                not changed since then.
            limit: At most so many requests.

        Returns:
            How many were deleted, made a tombstone or put off; fewer than *limit* if that was
            all for now, or if somebody else is at it.
        """

    async def forget_request(self, workflow_id: str, now_us: int) -> bool:
        """Do the same with one request at once, if it is finished.

        Returns:
            False if it stays: something below it is PENDING, or it is a tombstone. True if it
            is gone, or is not expired at all, as somebody has claimed its key anew: the next
            claim tells.
        """


class Secrets(Protocol):
    """What only the processes that share the database know."""

    async def read_secret(self) -> StoredSecret:
        """Return the secret that the ids of requests are made with.

        :meth:`Lifecycle.open` makes it where there is none, once, whatever races: all processes
        get the same one, for as long as the database exists. A database whose tables are from
        before there were secrets says so (``added_later``) until no request of that time is left.

        Raises:
            StorageError: The storage failed, or the secret was deleted.
        """


class Storage(Lifecycle, Executors, StepLog, Secrets, Transactions, Protocol):
    """All that the engine needs of a database."""
