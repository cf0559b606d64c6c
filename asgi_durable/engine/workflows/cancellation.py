"""Cancelling workflows, and stopping the runs of those that were cancelled elsewhere."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence

from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.workflows.result_waiters import ResultWaiters
from asgi_durable.errors import StorageError, StorageUnavailableError, WorkflowNotFoundError
from asgi_durable.storage.records import ResponseRecord
from asgi_durable.storage.writes import CancelWorkflow, Outcome, OutcomeKind

__all__ = ["Cancellation"]

logger = logging.getLogger(__name__)

# The message to an executor whose workflow another one has cancelled.
IS_CANCELLED = "is-cancelled"
# How often it queries by itself, and only for runs that take as long as that.
LOOK_INTERVAL_SECONDS = 1.0
LOOK_SIZE = 1000
# The status in the stored response of a cancelled request; it is never sent.
GONE_STATUS = 410


class Cancellation:
    """Cancels workflows of this and of other processes.

    The write decides: after it, the process that runs the workflow can record nothing for it any
    more. To stop the run early, this process interrupts its own runs. Another process gets a
    message, which may get lost, so its heartbeat also queries the runs that take longer.

    Args:
        services: The parts that all runs share.
        active: The runs of this process.
        outcomes: Wakes the callers that wait for a workflow.
        retention: How long cancelled requests are stored.
    """

    def __init__(
        self, services: Services, active: ActiveRuns, outcomes: ResultWaiters, retention: Retention
    ) -> None:
        self._services = services
        self._active = active
        self._outcomes = outcomes
        self._retention = retention
        self._hints: deque[str] = deque()
        self._seen: frozenset[str] = frozenset()
        self._due_at = 0.0
        self._look: asyncio.Task[None] | None = None

    async def cancel(self, workflow_id: str) -> bool:
        """Cancel a workflow and those it has called; return False if it has another outcome.

        Raises:
            WorkflowNotFoundError: No workflow has the id.
            StorageError: It is not known to be cancelled.
        """
        outcome = await self._commit(workflow_id)
        if outcome.kind is OutcomeKind.CONFLICT and outcome.existing is not None:
            return False
        if outcome.kind is not OutcomeKind.DONE:
            raise WorkflowNotFoundError(workflow_id)
        executor = self._services.executor
        ids = [cancelled_id for cancelled_id, _ in outcome.cancelled]
        # Invariant: durable first, as the waiting callers read the row when they wake.
        self._active.cancel(ids)
        for cancelled_id, owner in outcome.cancelled:
            if owner is not None and owner != executor.id:
                executor.send(owner, f"{IS_CANCELLED} {cancelled_id}")
            self._outcomes.wake(cancelled_id)
        return True

    async def _commit(self, workflow_id: str) -> Outcome:
        services = self._services
        queue = services.committer.queue(asyncio.get_running_loop())
        while True:
            executor_id = services.executor.id
            write = self._write(workflow_id, executor_id)
            outcome = await services.committer.submit(queue, write).wait()
            if outcome.kind is OutcomeKind.UNAVAILABLE:
                raise outcome.error or StorageUnavailableError("the storage is not available")
            if outcome.kind is not OutcomeKind.FENCED:
                return outcome
            # A dead executor cancels nothing; the process continues under another name soon.
            if not await services.executor.wait_until_renamed(
                executor_id, services.storage_retry_seconds
            ):
                msg = "this process counts as dead, and has not come back to life yet"
                raise StorageUnavailableError(msg)

    def _write(self, workflow_id: str, executor_id: str) -> CancelWorkflow:
        now_us = time.time_ns() // 1000
        expires_at_us, forgotten_at_us = self._retention.ends_of(now_us)
        return CancelWorkflow(
            workflow_id=workflow_id,
            executor_id=executor_id,
            cancelled_at_us=now_us,
            response=ResponseRecord(
                workflow_id=workflow_id,
                status_code=GONE_STATUS,
                headers=b"[]",
                body=None,
                expires_at_us=expires_at_us,
                forgotten_at_us=forgotten_at_us,
            ),
        )

    def on_message(self, message: str) -> None:
        """Query a workflow that another executor has cancelled; called on any thread."""
        what, _, workflow_id = message.partition(" ")
        if what == IS_CANCELLED and self._active.find(workflow_id) is not None:
            self._hints.append(workflow_id)
            self._services.executor.beat_soon()

    def look_if_due(self) -> None:
        """Query the workflows that may be cancelled elsewhere; called on the heartbeat's loop."""
        if self._look is not None and not self._look.done():
            return
        ids = set[str]()
        while self._hints:
            ids.add(self._hints.popleft())
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + LOOK_INTERVAL_SECONDS
            running = self._active.ids_with_callers()
            # Short runs notice a cancellation at their next write, and are not queried.
            ids |= running & self._seen
            self._seen = running
        if ids:
            self._look = asyncio.get_running_loop().create_task(self._look_at(sorted(ids)))

    async def _look_at(self, workflow_ids: Sequence[str]) -> None:
        try:
            for start in range(0, len(workflow_ids), LOOK_SIZE):
                some = workflow_ids[start : start + LOOK_SIZE]
                if cancelled := await self._services.storage.list_cancelled(some):
                    self._active.cancel(cancelled)
        except StorageError as error:
            logger.debug("What was cancelled elsewhere is looked for later: %s", error)
        except Exception:  # a defect must not end the looks
            logger.exception("What was cancelled elsewhere is looked for later")
