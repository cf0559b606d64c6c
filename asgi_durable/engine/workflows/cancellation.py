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
# How often the heartbeat queries. Runs that are shorter than this are not queried.
QUERY_INTERVAL_SECONDS = 1.0
QUERY_SIZE = 1000
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
        result_waiters: Wakes the callers that wait for a workflow.
        retention: How long cancelled requests are stored.
    """

    def __init__(
        self,
        services: Services,
        active: ActiveRuns,
        result_waiters: ResultWaiters,
        retention: Retention,
    ) -> None:
        self._services = services
        self._active = active
        self._result_waiters = result_waiters
        self._retention = retention
        # The workflows that messages of other executors named.
        self._named: deque[str] = deque()
        # The workflows that ran at the last query.
        self._ran_before: frozenset[str] = frozenset()
        self._due_at = 0.0
        self._query: asyncio.Task[None] | None = None

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
            self._result_waiters.wake(cancelled_id)
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
        kind, _, workflow_id = message.partition(" ")
        if kind == IS_CANCELLED and self._active.find(workflow_id) is not None:
            self._named.append(workflow_id)
            self._services.executor.beat_soon()

    def query_if_due(self) -> None:
        """Query the workflows that may be cancelled elsewhere; called on the heartbeat's loop."""
        if self._query is not None and not self._query.done():
            return
        ids = set[str]()
        while self._named:
            ids.add(self._named.popleft())
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + QUERY_INTERVAL_SECONDS
            running = self._active.ids_with_callers()
            # Short runs notice a cancellation at their next write, and are not queried.
            ids |= running & self._ran_before
            self._ran_before = running
        if ids:
            loop = asyncio.get_running_loop()
            self._query = loop.create_task(self._interrupt_cancelled(sorted(ids)))

    async def _interrupt_cancelled(self, workflow_ids: Sequence[str]) -> None:
        """Interrupt the runs of those workflows that other executors have cancelled."""
        try:
            for start in range(0, len(workflow_ids), QUERY_SIZE):
                some = workflow_ids[start : start + QUERY_SIZE]
                if cancelled := await self._services.storage.list_cancelled(some):
                    self._active.cancel(cancelled)
        except StorageError as error:
            logger.debug("Cannot query the cancelled workflows, trying again: %s", error)
        except Exception:  # a defect must not end the queries
            logger.exception("Cannot query the cancelled workflows, trying again")
