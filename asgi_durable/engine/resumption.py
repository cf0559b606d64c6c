"""Running recorded workflows again, without any call."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

from asgi_durable.engine.active_runs import ActiveRuns
from asgi_durable.engine.drives import Drives
from asgi_durable.engine.endings import Ending
from asgi_durable.engine.run import Run, Services
from asgi_durable.storage.records import StoredRun, WorkflowRecord

__all__ = ["Resumption"]


class Resumption:
    """Resumes or releases workflows that no run of this process has."""

    def __init__(self, services: Services, active: ActiveRuns, drives: Drives) -> None:
        self._services = services
        self._active = active
        self._drives = drives

    async def load_idle(self, workflow_ids: list[str]) -> list[StoredRun]:
        """Return the logs of unfinished workflows that no run of this process has.

        Invariant: a workflow that got a run while its log was being read is left to that run;
        what was read of it may be out of date.
        """
        with self._active.watching_launches() as launched:
            stored_runs = await self._services.storage.load_runs(workflow_ids)
        return [
            stored
            for stored in stored_runs
            if not stored.workflow.is_final
            and stored.workflow.workflow_id not in launched
            and self._active.find(stored.workflow.workflow_id) is None
        ]

    def resume(self, stored: StoredRun, *, is_counted: bool) -> Run | None:
        """Run a recorded workflow again; return ``None`` if somebody does already.

        The run has none of the caller's context variables: they are another request's.

        Args:
            stored: Its log; its row belongs to this process.
            is_counted: True if its row counts this execution already.
        """
        run = Run(
            self._services,
            stored.workflow,
            asyncio.get_running_loop(),
            executor_id=stored.workflow.executor_id,
        )
        run.load(stored)
        run.claimed.set(True)
        return self._launch_alone(run, self._drives.resumed(run, is_counted=is_counted))

    def release(self, workflow: WorkflowRecord) -> Run | None:
        """Let anybody run a workflow that no run has; ``None`` if one has it already.

        It is a run itself: so nobody can claim the workflow here before it is released.
        """
        run = Run(self._services, workflow, asyncio.get_running_loop())
        return self._launch_alone(run, self._drives.release(run))

    def stale_ids(self) -> frozenset[str]:
        """Return the workflows that are run here still on behalf of a dead executor."""
        return self._active.ids_of_others(self._services.executor.id)

    def _launch_alone(self, run: Run, drive: Coroutine[Any, Any, Ending]) -> Run | None:
        return run if self._active.launch(run, drive, context=contextvars.Context()) else None
