"""Resuming recorded workflows without any call."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import RunEnd
from asgi_durable.engine.runs.runner import WorkflowRunner
from asgi_durable.engine.runs.services import Services
from asgi_durable.errors import StorageUnavailableError, WorkflowInterruptedError
from asgi_durable.storage.records import StoredRun, WorkflowRecord
from asgi_durable.storage.writes import CancelWorkflow, OutcomeKind

__all__ = ["Resumption"]

DriveRequest = Callable[[Run], Coroutine[Any, Any, RunEnd]]


class Resumption:
    """Resumes or releases workflows that no run of this process has.

    Args:
        services: The parts that all runs share.
        active: The runs of this process.
        runner: Runs a workflow's function.
        drive_request: Runs a request.
    """

    def __init__(
        self,
        services: Services,
        active: ActiveRuns,
        runner: WorkflowRunner,
        drive_request: DriveRequest,
    ) -> None:
        self._services = services
        self._active = active
        self._runner = runner
        self._drive_request = drive_request

    async def load_idle(self, workflow_ids: list[str]) -> list[StoredRun]:
        """Return the logs of unfinished workflows that no run of this process has.

        A workflow whose caller is cancelled is cancelled as well, and left out.

        Invariant: a workflow that got a run while its log was being read is left to that run,
        because the log that was read may be out of date.
        """
        with self._active.watching_launches() as launched:
            stored_runs = await self._services.storage.load_runs(workflow_ids)
            cancelled_ids = await self._cancelled_callers(stored_runs)
        idle = [
            stored
            for stored in stored_runs
            if not stored.workflow.is_final
            and stored.workflow.workflow_id not in launched
            and self._active.find(stored.workflow.workflow_id) is None
        ]
        orphans = [
            stored
            for stored in idle
            if stored.workflow.awaited and stored.workflow.parent_id in cancelled_ids
        ]
        for stored in orphans:
            await self._cancel(stored.workflow)
        return [stored for stored in idle if stored not in orphans] if orphans else idle

    async def _cancelled_callers(self, stored_runs: Sequence[StoredRun]) -> frozenset[str]:
        """Return the ids of the cancelled callers.

        Workflows that they called just before the cancellation may have missed it.
        """
        called = [run.workflow for run in stored_runs if run.workflow.awaited]
        ids = {workflow.parent_id for workflow in called if workflow.parent_id is not None}
        return frozenset(await self._services.storage.list_cancelled(list(ids)) if ids else ())

    async def _cancel(self, workflow: WorkflowRecord) -> None:
        services, executor_id = self._services, self._services.executor.id
        queue = services.committer.queue(asyncio.get_running_loop())
        write = CancelWorkflow(
            workflow_id=workflow.workflow_id,
            executor_id=executor_id,
            cancelled_at_us=time.time_ns() // 1000,
        )
        outcome = await services.committer.submit(queue, write).wait()
        if outcome.kind is OutcomeKind.UNAVAILABLE:
            raise outcome.error or StorageUnavailableError

    def resume(self, stored: StoredRun, *, is_counted: bool) -> Run | None:
        """Run a recorded workflow again; return ``None`` if it has a run already.

        The run has none of the caller's context variables: they may belong to another request.

        Args:
            stored: The workflow's row, which this executor owns, and its step log.
            is_counted: True if the row counts this execution already.
        """
        run = Run(
            self._services,
            stored.workflow,
            asyncio.get_running_loop(),
            executor_id=stored.workflow.executor_id,
        )
        run.load(stored)
        run.claimed.set(True)
        if run.workflow.is_request:
            return self._launch_alone(run, self._drive_request(run))
        return self._launch_alone(run, self._runner.resumed(run, is_counted=is_counted))

    def begin(self, workflows: Iterable[WorkflowRecord]) -> None:
        """Run workflows that have just been started in the background."""
        for workflow in workflows:
            # If the engine has stopped, the process that takes over its workflows runs them.
            with contextlib.suppress(WorkflowInterruptedError):
                self.resume(StoredRun(workflow=workflow, steps=(), children=()), is_counted=True)

    def release(self, workflow: WorkflowRecord) -> Run | None:
        """Let any process run a workflow; return ``None`` if it has a run here already.

        The release is a run itself, so no call can claim the workflow here before it is done.
        """
        run = Run(self._services, workflow, asyncio.get_running_loop())
        return self._launch_alone(run, self._runner.release(run))

    def stale_ids(self) -> frozenset[str]:
        """Return the ids of workflows that still run here on behalf of a dead executor."""
        return self._active.ids_of_others(self._services.executor.id)

    def _launch_alone(self, run: Run, drive: Coroutine[Any, Any, RunEnd]) -> Run | None:
        return run if self._active.launch(run, drive, context=contextvars.Context()) else None
