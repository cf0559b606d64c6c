"""Queries about workflows by their ids; each is a step, recorded if a workflow asks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from asgi_durable.codec.json_codec import JsonCodec
from asgi_durable.codec.values import Values
from asgi_durable.concurrency.home_loop import require_asyncio
from asgi_durable.engine.composition import EngineParts
from asgi_durable.engine.process.definitions import StepDefinition
from asgi_durable.engine.process.function_values import FunctionValues
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.process.step_options import StepOptions
from asgi_durable.engine.requests.progress import sleep_of
from asgi_durable.engine.runs.frame import Frame
from asgi_durable.engine.runs.run_end import Completed
from asgi_durable.engine.workflows.handle import WorkflowStatus, workflow_status
from asgi_durable.errors import DecodeError, WorkflowNotFoundError
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.storage.records import WorkflowState

__all__ = ["RecordedQueries", "ResultValues", "WorkflowResult"]

# The class has moved since; other versions of the library write and read it under this name.
RECORDED_STATUS = "asgi_durable.engine.handle:WorkflowStatus"


class RecordedQueries:
    """The steps that the handles of workflows call.

    Args:
        registry: The engine's.
        running: Returns the parts of the started engine.
        frame: Returns where the current code runs.

    Attributes:
        exists: Raises ``WorkflowNotFoundError`` unless there is a workflow with an id.
        status: Returns a workflow's status.
        result: Waits for a workflow's outcome, with a timeout in seconds; :meth:`value_of`
            reads it.
        cancel: Cancels a workflow.
    """

    def __init__(
        self,
        registry: Registry,
        running: Callable[[], EngineParts],
        frame: Callable[[], Frame | None],
    ) -> None:
        self._registry = registry
        codec = registry.codec
        if isinstance(codec, JsonCodec):
            codec.register(WorkflowStatus, name=RECORDED_STATUS)
        else:
            codec.register(WorkflowStatus)
        self._get_running = running
        self._frame = frame
        self.exists = self._step(self._refuse_missing, "durable.retrieve_workflow")
        self.status = self._step(self._read_status, "durable.get_status")
        self.result = _ResultDefinition(
            self._wait_for_result,
            name="durable.get_result",
            registry=registry,
            options=StepOptions(),
        )
        self.cancel = self._step(self._cancel, "durable.cancel_workflow")

    def _running(self) -> EngineParts:
        require_asyncio()
        return self._get_running()

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
        return workflow_status(record, self._registry, is_asleep=wakes_at_us is not None)

    async def _wait_for_result(
        self, workflow_id: str, timeout_seconds: float | None
    ) -> WorkflowResult:
        running, frame = self._running(), self._frame()
        # Not anyio's: its scope would also cancel what the database connection does to recover
        # from the timeout.
        async with asyncio.timeout(timeout_seconds):
            in_run = frame is not None and frame.run is not None
            outcome = await running.outcomes.wait(workflow_id, in_run=in_run)
        if isinstance(outcome, Completed) and outcome.state is WorkflowState.SUCCESS:
            return WorkflowResult(outcome.name, outcome.output or b"null")
        raised: WorkflowResult = self._in_run(
            lambda: running.workflows.value_of(outcome, workflow_id)
        )
        return raised

    async def value_of(self, query: Awaitable[WorkflowResult]) -> Any:
        """Return a workflow's result, read by the types that the code has today."""
        result = await query
        if result.name is None:
            return result.value
        name = result.name
        return self._in_run(lambda: self._registry.outcome(name, result.output, None))

    def _in_run(self, read: Callable[[], Any]) -> Any:
        """Read an outcome.

        Invariant: an unreadable outcome is neither an outcome of the step that asks for it nor of
        that step's workflow.
        """
        try:
            return read()
        except DecodeError as error:
            frame = self._frame()
            if frame is None or frame.run is None:
                raise
            raise frame.run.stop(error) from error

    async def _cancel(self, workflow_id: str) -> bool:
        return await self._running().cancellation.cancel(workflow_id)


class _ResultDefinition(StepDefinition):
    def new_values(self) -> ResultValues:
        return ResultValues(self.registry.values, f"step {self.name!r}")


@fast_dataclass()
class WorkflowResult:
    """A workflow's result, as the step that asks for it records it.

    Attributes:
        name: The workflow's name; ``None`` if a former version has recorded the value itself.
        output: The encoded result.
        value: The result itself, if there is no name.
    """

    name: str | None
    output: bytes = b"null"
    value: Any = None


class ResultValues(FunctionValues):
    """Reads and writes the result of the step that asks for a workflow's result."""

    def __init__(self, values: Values, function: str) -> None:
        super().__init__(values, function, inspect.Signature(), {})
        self._outcomes = values

    def write_result(self, value: Any) -> tuple[bytes, Any]:
        return self._outcomes.write_outcome(value.name, value.output), value

    def read_result(self, data: bytes | None) -> WorkflowResult:
        found = self._outcomes.read_outcome(data or b"null")
        if found is None:
            return WorkflowResult(None, value=super().read_result(data))
        return WorkflowResult(*found)
