"""The engine: the entry of every durable call."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from asgi_durable.concurrency.home_loop import require_asyncio
from asgi_durable.engine.lifecycle import EngineLifecycle
from asgi_durable.engine.process.definitions import (
    StepDefinition,
    TransactionDefinition,
    WorkflowDefinition,
)
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.process.settings import Limits
from asgi_durable.engine.recorded_queries import RecordedQueries
from asgi_durable.engine.requests.claims import Requests
from asgi_durable.engine.runs.call import Call, WorkflowOptions
from asgi_durable.engine.runs.frame import Frame, current_frame
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.steps.sleep import checked_seconds, plain_sleep, run_sleep
from asgi_durable.engine.steps.step import run_step
from asgi_durable.engine.steps.transaction import run_plain_transaction, run_transaction
from asgi_durable.engine.workflows.handle import WorkflowStatus
from asgi_durable.errors import DurableUsageError
from asgi_durable.ids import child_workflow_id
from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.transaction_port import ApplicationDatabase
from asgi_durable.telemetry.observer import NO_TELEMETRY, TelemetrySource

__all__ = ["Engine"]


class Engine(EngineLifecycle):
    """Runs one application's workflows on one storage.

    Each call takes its place in the step log at once, and returns a coroutine.
    """

    def __init__(
        self,
        open_storage: Callable[[], Storage],
        open_application: Callable[[], ApplicationDatabase | None],
        registry: Registry,
        limits: Limits,
        telemetry: TelemetrySource = NO_TELEMETRY,
    ) -> None:
        super().__init__(open_storage, open_application, registry, limits, telemetry)
        self._queries = RecordedQueries(registry, self.running, self.frame)

    @property
    def requests(self) -> Requests:
        """The workflows that are requests; for async code.

        Raises:
            DurableUsageError: The engine is not started.
        """
        # A started engine may still be called on another kind of event loop, such as trio's.
        require_asyncio()
        return self.running().requests

    def call_step(
        self, definition: StepDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call a step: recorded between the steps of a run, a plain call elsewhere."""
        run = self.run_between_steps()
        if run is None:
            return definition.function(*args, **kwargs)
        return run_step(run, definition, run.next_number(), args, kwargs)

    def call_transaction(
        self, definition: TransactionDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call a transaction: recorded between the steps of a run, a plain one elsewhere."""
        run = self.run_between_steps()
        if run is None:
            services = self.running().services
            return run_plain_transaction(services, self.frame(), definition, args, kwargs)
        if run.single_transaction is not None:
            return run.single_transaction.call(definition, args, kwargs)
        return run_transaction(run, definition, run.next_number(), args, kwargs)

    def call_workflow(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: WorkflowOptions,
    ) -> Coroutine[Any, Any, Any]:
        """Run a workflow and return its result."""
        call = self._call(definition, args, kwargs, options, awaited=True)
        return self.running().workflows.result(call)

    def start_workflow(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: WorkflowOptions,
    ) -> Coroutine[Any, Any, str]:
        """Start a workflow in the background; return its id once its start is durable."""
        call = self._call(definition, args, kwargs, options, awaited=False)
        return self.running().workflows.start(call)

    def background(
        self, definition: WorkflowDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, str]:
        """Let a workflow start when the current run completes, or at once outside of a run.

        Returns:
            The workflow's id.
        """
        run = self._calling_run(definition)
        if run is None:
            return self.start_workflow(definition, args, kwargs, WorkflowOptions())
        outbox = run.open_outbox()
        number = outbox.next_number()
        call = Call(
            definition=definition,
            args=args,
            kwargs=kwargs,
            options=WorkflowOptions(),
            loop=run.loop,
            parent=(run, number),
            awaited=False,
        )
        workflow_id = child_workflow_id(run.workflow_id, number)
        # At once, so that the next call comes after it in the log.
        self.running().workflows.start_with_end(call, workflow_id, outbox)
        return _returned(workflow_id)

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Sleep: recorded between the steps of a run, a plain sleep elsewhere."""
        checked_seconds(seconds)
        run = self.run_between_steps()
        if run is None:
            return plain_sleep(seconds)
        return run_sleep(run, run.next_number(), seconds)

    def find_workflow(self, workflow_id: str) -> Coroutine[Any, Any, None]:
        """Raise ``WorkflowNotFoundError`` unless there is a workflow with this id."""
        return self.call_step(self._queries.exists, (workflow_id,), {})

    def workflow_status(self, workflow_id: str) -> Coroutine[Any, Any, WorkflowStatus]:
        """Return a workflow's status; recorded if a workflow asks for it."""
        return self.call_step(self._queries.status, (workflow_id,), {})

    def workflow_result(
        self, workflow_id: str, timeout_seconds: float | None
    ) -> Coroutine[Any, Any, Any]:
        """Wait for a workflow's outcome; recorded if a workflow asks for it."""
        self._refuse_in_transaction("waits for a workflow")
        query, arguments = self._queries.result, (workflow_id, timeout_seconds)
        return self._queries.value_of(self.call_step(query, arguments, {}))

    def cancel_workflow(self, workflow_id: str) -> Coroutine[Any, Any, bool]:
        """Cancel a workflow in any process; recorded if a workflow asks for it."""
        self._refuse_in_transaction("cancels a workflow")
        return self.call_step(self._queries.cancel, (workflow_id,), {})

    def _refuse_in_transaction(self, action: str) -> None:
        if (frame := self.frame()) is not None and frame.session is not None:
            msg = f"{frame.step_name!r} {action} while it holds the database"
            raise DurableUsageError(msg)

    def _call(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: WorkflowOptions,
        *,
        awaited: bool,
    ) -> Call:
        run = self._calling_run(definition)
        return Call(
            definition=definition,
            args=args,
            kwargs=kwargs,
            options=options,
            loop=run.loop if run is not None else require_asyncio(),
            parent=(run, run.next_number()) if run is not None else None,
            awaited=awaited,
        )

    def _calling_run(self, definition: WorkflowDefinition) -> Run | None:
        frame = self.frame()
        if frame is not None and frame.step_name is not None:
            msg = (
                f"workflow {definition.name!r} is called inside {frame.step_name!r}: "
                "steps and transactions cannot call workflows"
            )
            raise DurableUsageError(msg)
        return self.run_between_steps()

    # Context

    def frame(self) -> Frame | None:
        """Return where the current code runs; ``None`` outside of every run of this engine."""
        frame = current_frame.get()
        if frame is None or self._running is None:
            return None
        if frame.services is not self._running.services:
            return None
        if frame.run is not None and frame.run.closed:
            return None
        return frame

    def run_between_steps(self) -> Run | None:
        """Return the run that the current code can call a step in, ``None`` in a step or outside.

        Raises:
            DurableUsageError: The current code is not async, so it cannot await the step.
        """
        frame = self.frame()
        if frame is None:
            return None
        self.process.require_own()
        if frame.in_thread:
            msg = (
                "code that is not async cannot await this call; use durable.blocking: "
                "durable.blocking.run_workflow(fn, …), durable.blocking.run_step(fn, …)"
            )
            raise DurableUsageError(msg)
        return frame.run if frame.step_name is None else None


async def _returned(workflow_id: str) -> str:
    return workflow_id
