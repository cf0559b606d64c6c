"""Running again what nobody runs: after a start, and after the storage failed a run."""

from __future__ import annotations

import asyncio
import logging
import random

from asgi_durable.engine.active_runs import ActiveRuns
from asgi_durable.engine.run import Interrupted, Run, Services
from asgi_durable.engine.workflows import Workflows
from asgi_durable.errors import StorageError
from asgi_durable.storage.records import StoredRun

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)

PAGE_SIZE = 500
MAX_RECOVERED_AT_ONCE = 500
FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0


class Recovery:
    """Sweeps over the executor's PENDING workflows and resumes those that no run has."""

    def __init__(self, services: Services, active: ActiveRuns, workflows: Workflows) -> None:
        self._services = services
        self._active = active
        self._workflows = workflows
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._stopped = False
        # Ended here without an outcome, and would again: left for code that knows better.
        self._parked: set[str] = set()

    def sweep_soon(self, delay_seconds: float = 0.0) -> None:
        """Sweep once on the running event loop, after a delay; sweeps never overlap."""
        if self._stopped:
            return
        if self._task is not None and not self._task.done() and not _is_closed(self._task):
            self._again = True
            return
        self._again = False
        self._task = asyncio.get_running_loop().create_task(self._sweep(delay_seconds))

    def sweep_if_orphaned(self) -> None:
        """Sweep if an event loop went away with runs on it."""
        if self._again and (self._task is None or self._task.done()):
            self.sweep_soon()

    def on_interrupted(self, run: Run, ending: Interrupted) -> None:
        """Take note of a run that ended without an outcome."""
        if run.workflow.is_request:
            return
        if not ending.goes_on:
            self._parked.add(run.workflow_id)
            return
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # The event loop is being shut down; the next one to call us sweeps.
            self._again = True
        else:
            self.sweep_soon(FIRST_DELAY_SECONDS)

    async def stop(self) -> None:
        """End the sweep under way, and sweep no more."""
        self._stopped = True
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            return
        task.cancel()
        await asyncio.wait([task])

    async def _sweep(self, delay_seconds: float) -> None:
        delay = delay_seconds
        while True:
            await asyncio.sleep(delay * (1.0 + random.random() * 0.1))
            self._again = False
            try:
                await self._sweep_once()
            except StorageError as error:
                logger.warning("Recovery cannot read the storage, trying again: %s", error)
            else:
                if not self._again:
                    return
            delay = min(max(delay * 2, FIRST_DELAY_SECONDS), LONGEST_DELAY_SECONDS)

    async def _sweep_once(self) -> None:
        storage = self._services.storage
        free = asyncio.Semaphore(MAX_RECOVERED_AT_ONCE)
        last_id = ""
        while True:
            page = await storage.list_pending(
                self._services.executor_id, after=last_id, limit=PAGE_SIZE
            )
            if not page:
                return
            last_id = page[-1]
            idle = [i for i in page if self._active.find(i) is None and i not in self._parked]
            # Invariant: a workflow that got a run while its log was being read is left to
            # that run; what was read of it may be out of date.
            launched = self._active.watch_launches()
            for stored in await storage.load_runs(idle) if idle else []:
                await free.acquire()
                if stored.workflow.workflow_id in launched or stored.workflow.is_final:
                    free.release()
                else:
                    self._resume(stored, free)

    def _resume(self, stored: StoredRun, free: asyncio.Semaphore) -> None:
        run = self._workflows.resume(stored)
        run.done.add_done_callback(lambda _: free.release())


def _is_closed(task: asyncio.Task[None]) -> bool:
    return task.get_loop().is_closed()
