"""Waiting for the outcome of a workflow, wherever it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from asgi_durable.concurrency.backoff import Backoff
from asgi_durable.engine.recovery.own_workflows import Recovery
from asgi_durable.engine.runs.active_runs import ActiveRuns, wait_for
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import Completed, completed
from asgi_durable.engine.runs.services import Services
from asgi_durable.errors import (
    StorageUnavailableError,
    WorkflowInterruptedError,
    WorkflowNotFoundError,
)
from asgi_durable.storage.records import WorkflowRecord

__all__ = ["ResultWaiters", "Waiter"]

logger = logging.getLogger(__name__)

FIRST_POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 1.0

# What executors tell each other, and about which workflow.
ASKS_FOR, HAS_ENDED = "asks-for", "has-ended"


class ResultWaiters:
    """Waits for workflows of this and of other processes.

    Who waits asks the workflow's owner to tell when it has ended. That is a hint, which may get
    lost; the row is read again now and then as well.
    """

    def __init__(self, services: Services, active: ActiveRuns, recovery: Recovery) -> None:
        self._services = services
        self._active = active
        self._recovery = recovery
        self._watches: dict[str, _Watch] = {}
        self._asked: dict[str, set[str]] = {}

    async def wait(self, workflow_id: str, *, in_run: bool) -> Completed:
        """Return a workflow's outcome once it has one.

        Args:
            workflow_id: Which one.
            in_run: True if another workflow waits, which must not take for an outcome what
                only concerns this process.

        Raises:
            WorkflowNotFoundError: It has no row.
            StorageUnavailableError: The storage failed for as long as its patience lasts.
            Exception: Why this process could not finish it, while nobody else runs it.
        """
        backoff = Backoff(FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS)
        with self.watching(workflow_id) as waiter:
            while True:
                run = self._active.find(workflow_id)
                if run is not None:
                    ending = await wait_for(run, run.done, asyncio.get_running_loop())
                    if isinstance(ending, Completed):
                        return ending
                record = await self._read(workflow_id)
                if record.is_final:
                    self._services.registry.prepare()
                    return completed(record)
                self._refuse_parked(record, in_run=in_run)
                self.ask(record)
                await waiter.wait(backoff.next())

    async def wait_while_it_runs(
        self, workflow_id: str, timeout_seconds: float, poll_seconds: float
    ) -> None:
        """Wait until a workflow may not be run any more, or sleeps; it may run all the same.

        Args:
            workflow_id: Which one.
            timeout_seconds: For how long at most.
            poll_seconds: The same, where another process runs it and does not tell.
        """
        with self.watching(workflow_id) as waiter:
            run = self._active.find(workflow_id)
            if run is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_seconds):
                        if run.loop is asyncio.get_running_loop():
                            await run.sleeps().wait_for_change(run.ended)
                        else:
                            await wait_for(run, run.ended, asyncio.get_running_loop())
                return
            record = await self._services.storage.get_workflow(workflow_id)
            if record is not None and not record.is_final and record.executor_id is not None:
                self.ask(record)
                await waiter.wait(min(poll_seconds, timeout_seconds))

    async def exists(self, workflow_id: str) -> bool:
        """Tell whether there is a workflow with this id.

        Raises:
            StorageUnavailableError: The storage failed for as long as its patience lasts.
        """
        try:
            await self._read(workflow_id)
        except WorkflowNotFoundError:
            return False
        return True

    async def _read(self, workflow_id: str) -> WorkflowRecord:
        give_up_at = time.monotonic() + self._services.storage_retry_seconds
        backoff = Backoff(LONGEST_POLL_SECONDS, LONGEST_POLL_SECONDS, jitter=0.2)
        while True:
            try:
                record = await self._services.storage.get_workflow(workflow_id)
            except StorageUnavailableError:
                if time.monotonic() > give_up_at:
                    raise
                await backoff.wait()
                continue
            if record is None:
                raise WorkflowNotFoundError(workflow_id)
            return record

    def on_ended(self, run: Run) -> None:
        """Tell those who have asked for a run."""
        self.wake(run.workflow_id)
        for executor_id in self._asked.pop(run.workflow_id, ()):
            self._services.executor.send(executor_id, f"{HAS_ENDED} {run.workflow_id}")

    def is_waited_for(self, run: Run) -> bool:
        """Tell whether anybody waits for a run's outcome, as far as this process knows."""
        is_waited_for_here = run.ended.has_waiters() or run.done.has_waiters()
        return is_waited_for_here or run.workflow_id in self._asked

    def on_message(self, message: str) -> None:
        """Take note of what another executor tells; called on any thread."""
        what, _, rest = message.partition(" ")
        if what == HAS_ENDED:
            self.wake(rest)
        elif what == ASKS_FOR:
            asker, _, workflow_id = rest.partition(" ")
            self._asked.setdefault(workflow_id, set()).add(asker)
            if self._active.find(workflow_id) is None:
                # Ended meanwhile, or never here: who asks will read the row.
                self._asked.pop(workflow_id, None)
                self._services.executor.send(asker, f"{HAS_ENDED} {workflow_id}")

    def wake(self, workflow_id: str) -> None:
        """Let those who wait here for a workflow read its row; callable on any thread."""
        watch = self._watches.get(workflow_id)
        for waiter in tuple(watch.waiters) if watch is not None else ():
            waiter.wake()

    def _refuse_parked(self, record: WorkflowRecord, *, in_run: bool) -> None:
        parked = self._recovery.reason_for_parking(record.workflow_id)
        if parked is None or record.executor_id not in (None, self._services.executor.id):
            return
        if in_run:
            reason = f"this process cannot go on with it ({parked})"
            raise WorkflowInterruptedError(record.workflow_id, reason) from parked
        raise parked

    def ask(self, record: WorkflowRecord) -> None:
        """Ask a watched workflow's owner, once in a while, however many wait for it here."""
        executor, watch = self._services.executor, self._watches[record.workflow_id]
        owner, now = record.executor_id, time.monotonic()
        if owner in (None, executor.id):
            return
        if owner != watch.owner or now >= watch.asked_at + LONGEST_POLL_SECONDS:
            watch.owner, watch.asked_at = owner, now
            executor.send(owner, f"{ASKS_FOR} {executor.id} {record.workflow_id}")

    @contextmanager
    def watching(self, workflow_id: str) -> Iterator[Waiter]:
        """Give what is woken when a workflow has ended, or its stream has grown here."""
        waiter = Waiter()
        watch = self._watches.setdefault(workflow_id, _Watch())
        watch.waiters.add(waiter)
        try:
            yield waiter
        finally:
            watch.waiters.discard(waiter)
            if not watch.waiters and self._watches.get(workflow_id) is watch:
                del self._watches[workflow_id]


class _Watch:
    """Who waits here for one workflow, and whom they have asked."""

    def __init__(self) -> None:
        self.waiters: set[Waiter] = set()
        self.owner: str | None = None
        self.asked_at = 0.0


class Waiter:
    """Wakes one waiting task, from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Let it look again; callable on any thread."""
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:
            logger.debug("Nobody waits any more: the event loop has ended")

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until it is woken, or was since the last time, or for so long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()
