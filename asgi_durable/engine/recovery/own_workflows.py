"""Going on with this process's own workflows whose runs ended without an outcome."""

from __future__ import annotations

import asyncio
import logging
import random

from asgi_durable.concurrency.retry_log import is_worth_a_line
from asgi_durable.engine.process.log_text import error_text, workflows_text
from asgi_durable.engine.recovery.resumption import Resumption
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.run import Run, Services
from asgi_durable.engine.runs.run_end import Interrupted
from asgi_durable.errors import StorageError
from asgi_durable.storage.records import StoredRun, WorkflowRecord

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)

PAGE_SIZE = 200
# How long the next page waits for the runs of the one before it.
PAGE_PAUSE_SECONDS = 1.0
FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
MAX_PARKED = 10_000


class Recovery:
    """Sweeps over the executor's PENDING workflows: those that no run has are seen to.

    What the storage has failed is run again. A request is left to its retry, and what this
    process cannot finish to one that can: both are released.
    """

    def __init__(self, services: Services, active: ActiveRuns, resumption: Resumption) -> None:
        self._services = services
        self._active = active
        self._resumption = resumption
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
        self._stopped = False
        self._delay = FIRST_DELAY_SECONDS
        # True if runs were failed by the storage since the last sweep.
        self._is_failing = False
        # Ended here without an outcome, and would again: left for code that knows better.
        self._parked: dict[str, Exception] = {}
        # How often a workflow was interrupted by the storage.
        self._failures: dict[str, int] = {}

    @property
    def parked_ids(self) -> frozenset[str]:
        """Workflows that this process leaves to others."""
        return frozenset(self._parked)

    def reason_for_parking(self, workflow_id: str) -> Exception | None:
        """Return why a workflow is left alone by this process, ``None`` if it is not."""
        return self._parked.get(workflow_id)

    def sweep_soon(self, delay_seconds: float = 0.0) -> None:
        """Sweep on the running event loop, after a delay; sweeps never overlap."""
        self._wanted = True
        if not self._stopped and not self._is_sweeping():
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._sweep(delay_seconds))

    def sweep_if_wanted(self) -> None:
        """Sweep if an event loop went away with runs, or with a sweep, on it."""
        # One that a closed loop has left in the middle is not done, and never will be.
        is_left = self._task is not None and not self._task.done()
        if (self._wanted or is_left) and not self._is_sweeping():
            self.sweep_soon()

    def on_lost(self) -> None:
        """Take note that a run went away with its event loop."""
        self._wanted = True

    def on_interrupted(self, run: Run, ending: Interrupted) -> None:
        """Take note of a run that ended without an outcome."""
        if ending.is_released:
            if run.children:
                # A retry has opened those that failed, and may not have come to them again.
                self.sweep_soon()
            return
        if ending.is_owned_elsewhere:
            # Meanwhile it may be this process's again, as another executor's. Or it was all the
            # time, and something that an earlier run had written arrived late.
            is_others = run.executor_id != self._services.executor.id
            self.sweep_soon(0.0 if is_others else self._delay)
            return
        if not ending.retry_here and not run.workflow.is_request:
            self._park(run, ending.error)
            return
        if run.claimed.get():
            self._parked.pop(run.workflow_id, None)
        # Not `task.cancelling()`: a failed task group may leave that set (Python 3.11).
        if run.is_loop_ending():
            # The event loop is being shut down; the next one to call us sweeps.
            self._wanted = True
        else:
            self._is_failing = True
            self._tell_of(run, ending.error)
            self.sweep_soon(self._delay)

    def _tell_of(self, run: Run, error: Exception) -> None:
        """Log that a workflow will be run again, the more seldom the more often it is."""
        failures = self._failures.pop(run.workflow_id, 0) + 1
        self._failures[run.workflow_id] = failures
        if len(self._failures) > MAX_PARKED:
            del self._failures[next(iter(self._failures))]
        if is_worth_a_line(failures) and not run.workflow.is_request:
            logger.warning(
                "Workflow %s (%s) is interrupted, and will be run again: %s",
                run.workflow_id,
                run.workflow.name,
                error_text(error),
            )

    def set_aside(self, workflow: WorkflowRecord, error: Exception) -> Run | None:
        """Leave a workflow to others that this process cannot even begin to go on with."""
        self._note_parked(workflow.workflow_id, error)
        return self._resumption.release(workflow)

    def _note_parked(self, workflow_id: str, error: Exception) -> None:
        self._parked[workflow_id] = error
        if len(self._parked) > MAX_PARKED:
            # It may be tried once more, and is parked again.
            del self._parked[next(iter(self._parked))]

    def _park(self, run: Run, error: Exception) -> None:
        """Leave a workflow to others, now that its run is over."""
        known = self._parked.get(run.workflow_id)
        # At a stop all runs end without an outcome, and others go on with them.
        if not self._stopped and (known is None or str(known) != str(error)):
            logger.warning(
                "Workflow %s (%s) cannot go on in this process, and is left to others: %s",
                run.workflow_id,
                run.workflow.name,
                error_text(error),
            )
        self._note_parked(run.workflow_id, error)
        asyncio.get_running_loop().call_soon(self._release, run.workflow)

    def _release(self, workflow: WorkflowRecord) -> None:
        # Where the engine stops, all that is its executor's becomes free.
        if not self._stopped:
            self._resumption.release(workflow)

    async def stop(self) -> None:
        """End the sweep under way, and sweep no more."""
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
        """Sweep until nothing more is wanted; what is cancelled before that stays wanted."""
        delay = delay_seconds
        while self._wanted:
            await asyncio.sleep(delay * (1.0 + random.random() * 0.1))
            self._wanted = self._is_failing = False
            try:
                await self._sweep_once()
            except StorageError as error:
                logger.warning("Recovery cannot read the storage, trying again: %s", error)
                self._wanted = self._is_failing = True
            except asyncio.CancelledError:
                self._wanted = True
                raise
            # Longer and longer: runs that the storage fails again have steps to repeat.
            longer = min(self._delay * 2, LONGEST_DELAY_SECONDS)
            self._delay = longer if self._is_failing else FIRST_DELAY_SECONDS
            delay = self._delay

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
            runs = await self._see_to(idle) if idle else []
            # A pause, not a condition: these runs may wait for others of a later page.
            tasks = [run.task for run in runs if run.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=PAGE_PAUSE_SECONDS)

    async def _see_to(self, workflow_ids: list[str]) -> list[Run]:
        stored_runs = await self._resumption.load_idle(workflow_ids)
        seen_to = [self._see_to_one(stored) for stored in stored_runs]
        runs = [run for run in seen_to if run is not None]
        resumed = [run.workflow for run in runs if self._goes_on_here(run.workflow)]
        if resumed:
            logger.info("Going on, after an interruption, with %s", workflows_text(resumed))
        return runs

    def _goes_on_here(self, workflow: WorkflowRecord) -> bool:
        return not workflow.is_request and workflow.workflow_id not in self._parked

    def _see_to_one(self, stored: StoredRun) -> Run | None:
        workflow = stored.workflow
        if workflow.executor_id != self._services.executor.id:
            return None
        if stored.damage is not None:
            return self.set_aside(workflow, stored.damage)
        if not self._goes_on_here(workflow):
            return self._resumption.release(workflow)
        return self._resumption.resume(stored, is_counted=False)
