"""Taking over the workflows of executors that died or left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from asgi_durable.engine.process.log_text import workflows_text
from asgi_durable.engine.recovery.own_workflows import PAGE_PAUSE_SECONDS, PAGE_SIZE, Recovery
from asgi_durable.engine.recovery.resumption import Resumption
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.runs.suspension import asleep_until_us
from asgi_durable.errors import StorageError
from asgi_durable.storage.protocol import Beat, Runnable
from asgi_durable.storage.records import StoredRun, TakenWorkflow
from asgi_durable.storage.writes import ClearCrashCount

__all__ = ["Takeover"]

logger = logging.getLogger(__name__)

# How long the next suspect waits for this one, unless it records something or ends sooner. It
# doubles with each further attempt.
SUSPECT_SECONDS = 5.0
LONGEST_SUSPECT_SECONDS = 300.0
SUSPECT_POLL_SECONDS = 0.05
MOST_DOUBLINGS = 16


class Takeover:
    """Takes workflows over as fast as they run, and leaves the rest to other processes.

    A workflow that was running in two crashes in a row without any progress is a suspect: it may
    be the one that kills its process. Suspects are taken over one at a time, after all other
    workflows, so that the culprit crashes alone. If a suspect runs for long without a crash, its
    crash count is cleared before the next suspect begins.

    Args:
        services: The parts that all runs share.
        resumption: Resumes the workflows.
        recovery: Looks after taken workflows that got no run.
        serves_requests: Tells whether stored requests can be served in this process.
    """

    def __init__(
        self,
        services: Services,
        resumption: Resumption,
        recovery: Recovery,
        serves_requests: Callable[[], bool],
    ) -> None:
        self._services = services
        self._resumption = resumption
        self._recovery = recovery
        self._serves_requests = serves_requests
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Take over on the running event loop from now on, unless another event loop does."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.get_running_loop()
            self._services.executor.beat_soon()

    async def stop(self) -> None:
        """End the current takeover, and start no more."""
        self._stopped = True
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            return
        task.cancel()
        await asyncio.wait([task])

    def on_beat(self, beat: Beat) -> None:
        """Take over if a heartbeat found workflows without an owner; callable on any thread."""
        loop = self._loop
        if not beat.has_orphans or loop is None or self._stopped:
            return
        try:
            loop.call_soon_threadsafe(self._sweep_soon)
        except RuntimeError:
            logger.debug("The event loop has ended; the next one takes over")

    def runnable(self) -> Runnable:
        """Return the work that this process can run; callable on any thread."""
        names, bound_names = self._services.registry.workflow_names()
        return Runnable(
            names=names,
            bound_names=bound_names,
            excluded_ids=self._recovery.parked_ids | self._resumption.stale_ids(),
            requests=self._serves_requests(),
        )

    def _sweep_soon(self) -> None:
        task = self._task
        if not self._stopped and (task is None or task.done() or task.get_loop().is_closed()):
            self._task = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        try:
            while True:
                while runs := await self._take(PAGE_SIZE, suspects=False):
                    # A pause, not a condition: these runs may wait for workflows of a later page.
                    await asyncio.wait(_tasks(runs), timeout=PAGE_PAUSE_SECONDS)
                suspects = await self._take(1, suspects=True)
                if not suspects:
                    break
                await self._wait_for_suspects(suspects)
        except StorageError as error:
            logger.warning("Nothing can be taken over for now: %s", error)
        except asyncio.CancelledError:
            # The event loop is shutting down, or the engine stops.
            self._recovery.on_lost()
            raise
        except Exception:  # a defect must not end the takeovers
            logger.exception("Nothing can be taken over for now")
        # Invariant: each workflow that was taken has a run, or a sweep finds it. If a failure came
        # between the two, for example while its log was read, no other process would run it.
        self._recovery.sweep_soon()

    async def _take(self, limit: int, *, suspects: bool) -> list[Run]:
        services = self._services
        services.registry.prepare()
        executor_id = services.executor.id
        taken = await services.storage.take_over(
            executor_id, runnable=self.runnable(), limit=limit, suspects=suspects
        )
        if not taken:
            return []
        taken_at = time.monotonic()
        logger.info(
            "Taken over from other processes: %s", workflows_text(t.workflow for t in taken)
        )
        ids = [one.workflow.workflow_id for one in taken]
        stored_runs = await self._resumption.load_idle(ids)
        resumed = [
            self._begin(stored)
            for stored in stored_runs
            # Not those that another executor took while their logs were read.
            if stored.workflow.executor_id == executor_id
        ]
        runs = [run for run in resumed if run is not None]
        self._measure_lags(runs, taken, time.monotonic() - taken_at)
        return runs

    def _begin(self, stored: StoredRun) -> Run | None:
        if stored.damage is not None:
            return self._recovery.set_aside(stored.workflow, stored.damage)
        return self._resumption.resume(stored, is_counted=True)

    def _measure_lags(
        self, runs: list[Run], taken: list[TakenWorkflow], seconds_since: float
    ) -> None:
        """Report how long these workflows had no owner before their runs began, in seconds."""
        observer = self._services.telemetry.observer
        free_seconds = {one.workflow.workflow_id: one.free_seconds for one in taken}
        for run in runs:
            seconds = free_seconds[run.workflow_id]
            if seconds is not None:
                observer.taken_over(run.workflow, lag_seconds=seconds + seconds_since)

    async def _wait_for_suspects(self, runs: list[Run]) -> None:
        for run in runs:
            has_ended = await _wait_for_progress(run)
            if not has_ended and not run.has_progressed:
                # Invariant: durable before the next suspect begins. If the next one crashes the
                # process, this one must not be blamed.
                await run.writes.commit(ClearCrashCount(run.workflow_id, run.executor_id))


def _tasks(runs: list[Run]) -> list[asyncio.Task[None]]:
    return [run.task for run in runs if run.task is not None]


async def _wait_for_progress(run: Run) -> bool:
    """Wait until a suspect ends, records something, or has used up its time.

    Returns:
        True if it ended.
    """
    clock = asyncio.get_running_loop().time
    doublings = min(max(0, run.workflow.attempts - 3), MOST_DOUBLINGS)
    longest = min(SUSPECT_SECONDS * 2.0**doublings, LONGEST_SUSPECT_SECONDS)
    give_up_at = clock() + longest
    while not (
        run.done.is_set() or run.has_progressed or clock() > give_up_at or asleep_until_us(run)
    ):
        await asyncio.wait(_tasks([run]), timeout=SUSPECT_POLL_SECONDS)
    return run.done.is_set()
