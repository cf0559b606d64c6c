"""Resuming this executor's own workflows whose runs ended without an outcome."""

from __future__ import annotations

import asyncio
import logging

import anyio

from asgi_durable.concurrency.backoff import Backoff, is_worth_logging
from asgi_durable.engine.process.log_text import error_text, workflows_text
from asgi_durable.engine.recovery.resumption import Resumption
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.stopping import Interrupted
from asgi_durable.errors import StorageError
from asgi_durable.storage.records import StoredRun, WorkflowRecord

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)

PAGE_SIZE = 200
# How long a page waits for the runs of the page before it.
PAGE_PAUSE_SECONDS = 1.0
FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
DELAY_JITTER = 0.1
MAX_PARKED = 10_000


class Recovery:
    """Sweeps over the executor's PENDING workflows, and resumes or releases those without a run.

    A workflow that a storage failure interrupted is run again. A request is released for its
    retry, and a workflow that this process cannot finish for a process that can.
    """

    def __init__(self, services: Services, active: ActiveRuns, resumption: Resumption) -> None:
        self._services = services
        self._active = active
        self._resumption = resumption
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
        self._stopped = False
        self._backoff = Backoff(FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, jitter=DELAY_JITTER)
        # True if a storage failure interrupted a run since the last sweep.
        self._is_failing = False
        # Workflows that cannot finish in this process, with the reasons: left to other code.
        self._parked: dict[str, Exception] = {}
        # How often storage failures have interrupted a workflow.
        self._failures: dict[str, int] = {}

    @property
    def parked_ids(self) -> frozenset[str]:
        """Workflows that this process leaves to others."""
        return frozenset(self._parked)

    def reason_for_parking(self, workflow_id: str) -> Exception | None:
        """Return why this process leaves a workflow to others, ``None`` if it does not."""
        return self._parked.get(workflow_id)

    def sweep_soon(self, delay_seconds: float = 0.0) -> None:
        """Sweep on the running event loop after a delay; sweeps never overlap."""
        self._wanted = True
        if not self._stopped and not self._is_sweeping():
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._sweep(delay_seconds))

    def sweep_if_wanted(self) -> None:
        """Sweep if an event loop ended with runs, or with a sweep, on it."""
        # A sweep on a closed event loop is not done, and never will be.
        was_lost = self._task is not None and not self._task.done()
        if (self._wanted or was_lost) and not self._is_sweeping():
            self.sweep_soon()

    def on_lost(self) -> None:
        """Remember that an event loop ended with a run on it."""
        self._wanted = True

    def on_interrupted(self, run: Run, end: Interrupted) -> None:
        """Decide what to do about a run that ended without an outcome."""
        if end.is_released:
            if run.log.children:
                # A retry has reopened the failed children, and may not have called them again.
                self.sweep_soon()
            return
        if end.is_owned_elsewhere:
            # This process may own the workflow again by now, as a new executor. Or it owned it
            # all the time, and a late write of an earlier run was refused.
            is_others = run.executor_id != self._services.executor.id
            self.sweep_soon(0.0 if is_others else self._backoff.seconds)
            return
        if not end.retry_here and not run.workflow.is_request:
            self._park(run, end.error)
            return
        if run.claimed.get():
            self._parked.pop(run.workflow_id, None)
        # Not `task.cancelling()`: a failed task group may leave that set (Python 3.11).
        if run.stopping.is_loop_ending():
            # The event loop is shutting down; the next event loop to call the engine sweeps.
            self._wanted = True
        else:
            self._is_failing = True
            self._log_interruption(run, end.error)
            self.sweep_soon(self._backoff.seconds)

    def _log_interruption(self, run: Run, error: Exception) -> None:
        """Log that a workflow will be run again, more rarely each time."""
        failures = self._failures.pop(run.workflow_id, 0) + 1
        self._failures[run.workflow_id] = failures
        if len(self._failures) > MAX_PARKED:
            del self._failures[next(iter(self._failures))]
        if is_worth_logging(failures) and not run.workflow.is_request:
            logger.warning(
                "Workflow %s (%s) is interrupted, and will be run again: %s",
                run.workflow_id,
                run.workflow.name,
                error_text(error),
            )

    def set_aside(self, workflow: WorkflowRecord, error: Exception) -> Run | None:
        """Leave a workflow to others, because this process cannot even begin to resume it."""
        self._add_parked(workflow.workflow_id, error)
        return self._resumption.release(workflow)

    def _add_parked(self, workflow_id: str, error: Exception) -> None:
        self._parked[workflow_id] = error
        if len(self._parked) > MAX_PARKED:
            # The oldest may be resumed once more, and is parked again then.
            del self._parked[next(iter(self._parked))]

    def _park(self, run: Run, error: Exception) -> None:
        """Leave a workflow to others, because its run cannot finish here."""
        known = self._parked.get(run.workflow_id)
        # At a stop all runs end without an outcome, and others resume them.
        if not self._stopped and (known is None or str(known) != str(error)):
            logger.warning(
                "Workflow %s (%s) cannot continue in this process, and is left to others: %s",
                run.workflow_id,
                run.workflow.name,
                error_text(error),
            )
        self._add_parked(run.workflow_id, error)
        asyncio.get_running_loop().call_soon(self._release, run.workflow)

    def _release(self, workflow: WorkflowRecord) -> None:
        # When the engine stops, all workflows of its executor become free anyway.
        if not self._stopped:
            self._resumption.release(workflow)

    async def stop(self) -> None:
        """End the current sweep, and start no more."""
        self._stopped = True
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            return
        task.cancel()
        await asyncio.wait([task])

    def _is_sweeping(self) -> bool:
        task = self._task
        return task is not None and not task.done() and not task.get_loop().is_closed()

    async def _sweep(self, delay_seconds: float) -> None:
        """Sweep until no sweep is wanted any more; a cancelled sweep stays wanted."""
        delay = delay_seconds
        while self._wanted:
            await anyio.sleep(self._backoff.with_jitter(delay))
            self._wanted = self._is_failing = False
            try:
                await self._sweep_once()
            except StorageError as error:
                logger.warning("Recovery cannot read the storage, trying again: %s", error)
                self._wanted = self._is_failing = True
            except asyncio.CancelledError:
                self._wanted = True
                raise
            # Each interrupted run has steps to repeat, so the pauses grow.
            if self._is_failing:
                self._backoff.next()
            else:
                self._backoff.reset()
            delay = self._backoff.seconds

    async def _sweep_once(self) -> None:
        storage = self._services.storage
        last_id = ""
        while True:
            page = await storage.list_pending(
                self._services.executor.id, after=last_id, limit=PAGE_SIZE
            )
            if not page:
                return
            last_id = page[-1]
            idle = [workflow_id for workflow_id in page if self._active.find(workflow_id) is None]
            runs = await self._resume_or_release(idle) if idle else []
            # A pause, not a condition: these runs may wait for workflows of a later page.
            tasks = [run.task for run in runs if run.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=PAGE_PAUSE_SECONDS)

    async def _resume_or_release(self, workflow_ids: list[str]) -> list[Run]:
        stored_runs = await self._resumption.load_idle(workflow_ids)
        launched = [self._resume_or_release_one(stored) for stored in stored_runs]
        runs = [run for run in launched if run is not None]
        resumed = [run.workflow for run in runs if self._continues_here(run.workflow)]
        if resumed:
            logger.info("Resuming after an interruption: %s", workflows_text(resumed))
        return runs

    def _continues_here(self, workflow: WorkflowRecord) -> bool:
        return not workflow.is_request and workflow.workflow_id not in self._parked

    def _resume_or_release_one(self, stored: StoredRun) -> Run | None:
        workflow = stored.workflow
        if workflow.executor_id != self._services.executor.id:
            return None
        if stored.damage is not None:
            return self.set_aside(workflow, stored.damage)
        if not self._continues_here(workflow):
            return self._resumption.release(workflow)
        return self._resumption.resume(stored, is_counted=False)
