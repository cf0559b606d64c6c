"""The writes of one run that are not durable yet."""

from __future__ import annotations

import asyncio
import contextlib

from asgi_durable.concurrency.once import Once
from asgi_durable.engine.process.committer import Committer
from asgi_durable.engine.stopping import OwnedElsewhereError, RunStopped, StopSignal
from asgi_durable.errors import StorageError
from asgi_durable.storage.writes import DONE, Outcome, OutcomeKind, Write

__all__ = ["PendingWrites"]

# How many writes may be pending before a step without effects waits for them too. Each submission
# looks at all of them, and a run that never waits leaves no turn to others.
MANY_WRITES = 64


class PendingWrites:
    """Submits the writes of a run, and waits until they are durable.

    Invariant: nothing is written after a write that is known to be lost. The end of a workflow
    would stand although the record of a step is missing.

    Args:
        workflow_id: The run's workflow.
        committer: Commits the writes.
        loop: The run's event loop.
        stopping: Stops the run when a write is lost.
    """

    __slots__ = ("_committer", "_pending", "_queue", "_stopping", "_workflow_id")

    def __init__(
        self,
        workflow_id: str,
        committer: Committer,
        loop: asyncio.AbstractEventLoop,
        stopping: StopSignal,
    ) -> None:
        self._workflow_id = workflow_id
        self._committer = committer
        self._queue = committer.queue(loop)
        self._stopping = stopping
        self._pending: list[Once[Outcome]] = []

    @property
    def has_many(self) -> bool:
        """True if so many writes are pending that the run must wait for them."""
        return len(self._pending) >= MANY_WRITES

    def submit(self, write: Write) -> None:
        """Submit a write; :meth:`wait_durable` waits for it.

        Raises:
            RunStopped: A write before this one is known to be lost.
        """
        if self._pending:
            self._drop_durable()
        self._pending.append(self._committer.submit(self._queue, write))

    def submit_unneeded(self, write: Write) -> None:
        """Submit a write that no later write or result depends on."""
        self._committer.submit(self._queue, write)

    async def commit(self, write: Write) -> Outcome:
        """Submit a write and return its outcome, whatever it is."""
        return await self._committer.submit(self._queue, write).wait()

    async def wait_durable(self) -> None:
        """Wait until every submitted write is durable.

        Invariant: awaited before the body of each step, and before a result is shown. Code
        between steps has no side effects, so nothing needs to be durable sooner.

        Raises:
            RunStopped: The run must not continue.
        """
        while self._pending:
            # The last one first: the writes before it have their outcomes by then.
            await self._pending[-1].wait()
            self._drop_durable()
        self._stopping.raise_if_stopped()

    def is_all_durable(self) -> bool:
        """Tell whether every submitted write is known to be durable."""
        with contextlib.suppress(RunStopped):
            self._drop_durable()
            return not self._pending
        return False

    def depend_on(self, other: PendingWrites) -> None:
        """Let this run continue only when the writes of another run so far are durable.

        Raises:
            RunStopped: One of them is lost.
        """
        with contextlib.suppress(RunStopped):
            other._drop_durable()
        # Both runs stop: the code of either may call this, parent or child.
        reason = other._stopping.reason
        if reason is not None:
            raise self._stopping.stop(reason.error, retry_here=reason.retry_here)
        self._pending.extend(other._pending)

    def check(self, outcome: Outcome) -> None:
        """Stop the run if a write was not applied.

        Raises:
            RunStopped: It was not.
        """
        if outcome is DONE or outcome.kind in (OutcomeKind.DONE, OutcomeKind.RESUMED):
            return
        if outcome.kind is OutcomeKind.UNAVAILABLE:
            error = outcome.error or StorageError("no storage")
            raise self._stopping.stop(error, retry_here=True)
        if outcome.kind is OutcomeKind.REJECTED:
            msg = f"workflow {self._workflow_id!r}: the database cannot hold a record"
            raise self._stopping.stop(StorageError(f"{msg}: {outcome.error}"))
        raise self._stopping.stop(OwnedElsewhereError(self._workflow_id))

    def _drop_durable(self) -> None:
        """Drop the writes that are durable; raise ``RunStopped`` if one of them is lost."""
        waiting: list[Once[Outcome]] = []
        for write in self._pending:
            if write.is_set():
                self.check(write.get())
            else:
                waiting.append(write)
        self._pending = waiting
