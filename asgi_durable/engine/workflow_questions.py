"""What is asked of workflows by their ids: a step, recorded where a workflow asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asgi_durable.engine.definitions import StepDefinition
from asgi_durable.engine.event_loops import require_asyncio
from asgi_durable.engine.frame import Frame
from asgi_durable.engine.handle import WorkflowStatus, workflow_status
from asgi_durable.engine.registry import Registry
from asgi_durable.engine.request_progress import sleep_of
from asgi_durable.engine.running import Running
from asgi_durable.engine.step_options import StepOptions
from asgi_durable.errors import WorkflowNotFoundError

__all__ = ["WorkflowQuestions"]


class WorkflowQuestions:
    """The steps that handles are made of.

    Args:
        registry: The engine's.
        running: Returns what works now.
        frame: Returns where the current code runs.

    Attributes:
        exists: Raises ``WorkflowNotFoundError`` unless there is a workflow with an id.
        status: Returns its status.
        result: Waits for its outcome, for so many seconds.
        cancel: Cancels it.
    """

    def __init__(
        self,
        registry: Registry,
        running: Callable[[], Running],
        frame: Callable[[], Frame | None],
    ) -> None:
        self._registry = registry
        registry.codec.register(WorkflowStatus)
        self._given_running = running
        self._frame = frame
        self.exists = self._step(self._refuse_missing, "durable.retrieve_workflow")
        self.status = self._step(self._read_status, "durable.get_status")
        self.result = self._step(self._wait_for_result, "durable.get_result")
        self.cancel = self._step(self._cancel, "durable.cancel_workflow")

    def _running(self) -> Running:
        require_asyncio()
        return self._given_running()

    def _step(self, function: Callable[..., Any], name: str) -> StepDefinition:
        return StepDefinition(function, name=name, registry=self._registry, options=StepOptions())

    async def _refuse_missing(self, workflow_id: str) -> None:
        running = self._running()
        if running.active.find(workflow_id) is not None:
            return
        if await running.services.storage.get_workflow(workflow_id) is None:
            raise WorkflowNotFoundError(workflow_id)

    async def _read_status(self, workflow_id: str) -> WorkflowStatus:
        running = self._running()
        record = await running.services.storage.get_workflow(workflow_id)
        if record is None:
            raise WorkflowNotFoundError(workflow_id)
        wakes_at_us = None
        if not record.is_final:
            storage, active = running.services.storage, running.active
            wakes_at_us = await sleep_of(workflow_id, storage, active)
        self._registry.prepare()
        return workflow_status(record, self._registry.codec, is_asleep=wakes_at_us is not None)

    async def _wait_for_result(self, workflow_id: str, timeout_seconds: float | None) -> Any:
        running = self._running()
        async with asyncio.timeout(timeout_seconds):
            in_run = (frame := self._frame()) is not None and frame.run is not None
            outcome = await running.outcomes.wait(workflow_id, in_run=in_run)
        return running.workflows.value_of(outcome, workflow_id)

    async def _cancel(self, workflow_id: str) -> bool:
        return await self._running().cancellation.cancel(workflow_id)
