"""Waiting for the outcome of a workflow, wherever it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from asgi_durable.engine.active_runs import ActiveRuns, wait_for
from asgi_durable.engine.recovery import Recovery
from asgi_durable.engine.run import Finished, Run, Services, finished
from asgi_durable.errors import WorkflowNotFoundError
from asgi_durable.storage.records import WorkflowRecord

__all__ = ["Outcomes"]

logger = logging.getLogger(__name__)

FIRST_POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 1.0

# What executors tell each other, and about which workflow.
ASKS_FOR, HAS_ENDED = "asks-for", "has-ended"


class Outcomes:
    """Waits for workflows of this and of other processes.

    Who waits asks the workflow's owner to tell when it has ended. That is a hint, which may get
    lost; the row is read again now and then as well.
    """

    def __init__(self, services: Services, active: ActiveRuns, recovery: Recovery) -> None:
        self._services = services
        self._active = active
        self._recovery = recovery
        self._waiting: dict[str, set[_Waiter]] = {}
        self._asked: dict[str, set[str]] = {}

    async def wait(self, workflow_id: str) -> Finished:
        """Return a workflow's outcome once it has one.

        Raises:
            WorkflowNotFoundError: It has no row.
            Exception: Why this process could not finish it, while nobody else runs it.
        """
        delay = FIRST_POLL_SECONDS
        with self._listening(workflow_id) as waiter:
            while True:
                run = self._active.find(workflow_id)
                if run is not None:
                    ending = await wait_for(run, run.done, asyncio.get_running_loop())
                    if isinstance(ending, Finished):
                        return ending
                record = await self._services.storage.get_workflow(workflow_id)
                if record is None:
                    raise WorkflowNotFoundError(workflow_id)
                if record.is_final:
                    self._services.registry.prepare()
                    return finished(record)
                self._refuse_parked(record)
                self._ask(record)
                await waiter.wait(delay)
                delay = min(delay * 2, LONGEST_POLL_SECONDS)

    def on_ended(self, run: Run) -> None:
        """Tell those who have asked for a run."""
        for executor_id in self._asked.pop(run.workflow_id, ()):
            self._services.executor.send(executor_id, f"{HAS_ENDED} {run.workflow_id}")

    def on_message(self, message: str) -> None:
        """Take note of what another executor tells; called on any thread."""
        what, _, rest = message.partition(" ")
        if what == HAS_ENDED:
            for waiter in tuple(self._waiting.get(rest, ())):
                waiter.wake()
        elif what == ASKS_FOR:
            asker, _, workflow_id = rest.partition(" ")
            self._asked.setdefault(workflow_id, set()).add(asker)
            if self._active.find(workflow_id) is None:
                # Ended meanwhile, or never here: who asks will read the row.
                self._asked.pop(workflow_id, None)
                self._services.executor.send(asker, f"{HAS_ENDED} {workflow_id}")

    def _refuse_parked(self, record: WorkflowRecord) -> None:
        parked = self._recovery.reason_for_parking(record.workflow_id)
        if parked is not None and record.executor_id in (None, self._services.executor.id):
            raise parked

    def _ask(self, record: WorkflowRecord) -> None:
        executor = self._services.executor
        if record.executor_id not in (None, executor.id):
            executor.send(record.executor_id, f"{ASKS_FOR} {executor.id} {record.workflow_id}")

    @contextmanager
    def _listening(self, workflow_id: str) -> Iterator[_Waiter]:
        waiter = _Waiter()
        self._waiting.setdefault(workflow_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiting.get(workflow_id, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiting.pop(workflow_id, None)


class _Waiter:
    """Wakes one waiting task, from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:
            logger.debug("Nobody waits any more: the event loop has ended")

    async def wait(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()
