"""Waiting for the outcome of a workflow, wherever it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from asgi_durable.concurrency.backoff import Backoff
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

__all__ = ["ParkedWorkflows", "ResultWaiters", "Waiter"]

logger = logging.getLogger(__name__)

FIRST_POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 1.0

# The messages between executors; the id of a workflow follows.
ASKS_FOR, HAS_ENDED = "asks-for", "has-ended"


class ParkedWorkflows(Protocol):
    """The workflows that this process owns, but cannot finish."""

    def reason_for_parking(self, workflow_id: str) -> Exception | None:
        """Return why this process leaves a workflow to others, ``None`` if it does not."""


class ResultWaiters:
    """Waits for workflows of this and of other processes.

    It asks the workflow's owner for a message when the workflow has ended. The message may get
    lost, so the row is read again from time to time as well.

    Args:
        services: The parts that all runs share.
        active: The runs of this process.
        parked: The workflows that this process cannot finish.
    """

    def __init__(self, services: Services, active: ActiveRuns, parked: ParkedWorkflows) -> None:
        self._services = services
        self._active = active
        self._parked = parked
        self._watches: dict[str, _Watch] = {}
        # The executors that asked for a message about a workflow, by its id.
        self._askers: dict[str, set[str]] = {}

    async def wait(self, workflow_id: str, *, in_run: bool) -> Completed:
        """Return a workflow's outcome once it has one.

        Args:
            workflow_id: The workflow.
            in_run: True if another workflow waits. It must not take a problem of this process for
                an outcome.

        Raises:
            WorkflowNotFoundError: It has no row.
            StorageUnavailableError: The storage failed until its retry timeout.
            Exception: The reason why this process could not finish it, while no other runs it.
        """
        backoff = Backoff(FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS)
        with self.watching(workflow_id) as waiter:
            while True:
                run = self._active.find(workflow_id)
                if run is not None:
                    end = await wait_for(run, run.done, asyncio.get_running_loop())
                    if isinstance(end, Completed):
                        return end
                record = await self._read(workflow_id)
                if record.is_final:
                    self._services.registry.prepare()
                    return completed(record)
                self._raise_if_parked(record, in_run=in_run)
                self.ask(record)
                await waiter.wait(backoff.next())

    async def wait_while_it_runs(
        self, workflow_id: str, timeout_seconds: float, poll_seconds: float
    ) -> None:
        """Wait until a workflow has probably ended, or sleeps; it may still run.

        Args:
            workflow_id: The workflow.
            timeout_seconds: How long to wait at most.
            poll_seconds: How long to wait at most if another process runs it.
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
            StorageUnavailableError: The storage failed until its retry timeout.
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
        """Wake the callers that wait for a run, here and in other processes."""
        workflow_id = run.workflow_id
        if workflow_id in self._watches:
            self.wake(workflow_id)
        for executor_id in self._askers.pop(workflow_id, ()):
            self._services.executor.send(executor_id, f"{HAS_ENDED} {workflow_id}")

    def is_waited_for(self, run: Run) -> bool:
        """Tell whether a caller waits for a run's outcome, as far as this process knows."""
        is_waited_for_here = run.ended.has_waiters() or run.done.has_waiters()
        return is_waited_for_here or run.workflow_id in self._askers

    def on_message(self, message: str) -> None:
        """Handle a message of another executor; called on any thread."""
        kind, _, rest = message.partition(" ")
        if kind == HAS_ENDED:
            self.wake(rest)
        elif kind == ASKS_FOR:
            asker, _, workflow_id = rest.partition(" ")
            self._askers.setdefault(workflow_id, set()).add(asker)
            if self._active.find(workflow_id) is None:
                # Ended meanwhile, or never here: the other executor will read the row.
                self._askers.pop(workflow_id, None)
                self._services.executor.send(asker, f"{HAS_ENDED} {workflow_id}")

    def wake(self, workflow_id: str) -> None:
        """Let the callers that wait here for a workflow read its row; callable on any thread."""
        watch = self._watches.get(workflow_id)
        for waiter in tuple(watch.waiters) if watch is not None else ():
            waiter.wake()

    def _raise_if_parked(self, record: WorkflowRecord, *, in_run: bool) -> None:
        reason = self._parked.reason_for_parking(record.workflow_id)
        if reason is None or record.executor_id not in (None, self._services.executor.id):
            return
        if in_run:
            text = f"this process cannot continue it ({reason})"
            raise WorkflowInterruptedError(record.workflow_id, text) from reason
        raise reason

    def ask(self, record: WorkflowRecord) -> None:
        """Ask a watched workflow's owner for a message, once in a while for all that wait here."""
        executor, watch = self._services.executor, self._watches[record.workflow_id]
        owner, now = record.executor_id, time.monotonic()
        if owner in (None, executor.id):
            return
        if owner != watch.owner or now >= watch.asked_at + LONGEST_POLL_SECONDS:
            watch.owner, watch.asked_at = owner, now
            executor.send(owner, f"{ASKS_FOR} {executor.id} {record.workflow_id}")

    @contextmanager
    def watching(self, workflow_id: str) -> Iterator[Waiter]:
        """Yield a waiter that wakes when a workflow has ended, or its stream has grown here."""
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
    """The waiters of one workflow here, and the owner that was asked for a message."""

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
        """Wake the task; callable on any thread."""
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:
            logger.debug("Nobody waits any more: the event loop has ended")

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until it is woken, or was since the last call, or until the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()
