"""Calls of the engine from code that is not async: each waits in its thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from asgi_durable.concurrency.thread_bridge import LoopEndedError, ThreadBridge
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.process.definitions import (
    Definition,
    StepDefinition,
    TransactionDefinition,
    WorkflowDefinition,
)
from asgi_durable.engine.runs.call import WorkflowOptions
from asgi_durable.engine.runs.frame import Frame, current_frame
from asgi_durable.engine.runs.run_end import RunStopped
from asgi_durable.engine.steps.sleep import checked_seconds
from asgi_durable.engine.workflows.handle import WorkflowStatus
from asgi_durable.errors import DurableUsageError, WorkflowInterruptedError

__all__ = ["BlockingEngine"]

ResultT = TypeVar("ResultT")
DefinitionT = TypeVar("DefinitionT", bound=Definition)

LOOP_ENDED = "its event loop ended"
UNKNOWN = "unknown"


class BlockingEngine:
    """What an engine does for threads in which no event loop runs.

    The call itself is made on the engine's event loop, with the thread's context variables, so
    it has the same place in the log and follows the same rules as one of async code.

    Args:
        engine: What is called.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # Life

    def start(self) -> None:
        """Start the engine on an event loop of its own, and resume what was interrupted.

        Raises:
            StorageError: The database cannot be used; the message names it.
            DurableUsageError: The parent process has started the engine.
        """
        _refuse_event_loop("start", "'async with durable:'")
        self._engine.process.require_own()
        own = self._engine.home.own()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), own.loop).result()
        except BaseException:
            self._engine.home.end()
            raise

    def stop(self) -> None:
        """Stop the engine, and end its event loop."""
        if not self._engine.process.is_own():
            return
        own = self._engine.home.own()
        try:
            asyncio.run_coroutine_threadsafe(self._engine.stop(), own.loop).result()
        finally:
            self._engine.home.end()

    async def _start(self) -> None:
        await self._engine.start()
        self._engine.recover()

    # Calls

    def call_step(
        self, definition: StepDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a step: recorded between the steps of a run, a plain call elsewhere."""
        frame = self._frame()
        if not definition.is_async and (frame is None or frame.step_name is not None):
            return definition.call_decorated(*args, **kwargs)
        _refuse_event_loop(definition.name, "'await durable.run_step(fn, …)'")
        return self._wait(
            definition,
            lambda definition: self._engine.call_step(definition, args, kwargs),
        )

    def call_transaction(
        self, definition: TransactionDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a transaction: recorded between the steps of a run, a plain one elsewhere."""
        _refuse_event_loop(definition.name, "'await durable.run_step(fn, …)'")
        return self._wait(
            definition,
            lambda definition: self._engine.call_transaction(definition, args, kwargs),
        )

    def call_workflow(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: WorkflowOptions,
    ) -> Any:
        """Run a workflow and return its result."""
        _refuse_event_loop(definition.name, "'await durable.run_workflow(fn, …)'")
        return self._wait(
            definition,
            lambda definition: self._engine.call_workflow(definition, args, kwargs, options),
        )

    def start_workflow(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: WorkflowOptions,
    ) -> str:
        """Start a workflow in the background; return its id once that is durable."""
        _refuse_event_loop(definition.name, "'await durable.start_workflow(fn, …)'")
        return self._call(lambda _: self._engine.start_workflow(definition, args, kwargs, options))

    def background(
        self, definition: WorkflowDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> str:
        """Let a workflow start with the end of the current run; return its id."""
        _refuse_event_loop(definition.name, "'await durable.background(fn, …)'")

        async def begin(_: ThreadBridge[str]) -> str:
            return await self._engine.background(definition, args, kwargs)

        return self._call(begin)

    def sleep(self, seconds: float) -> None:
        """Sleep: recorded between the steps of a run, a plain sleep elsewhere."""
        _refuse_event_loop("sleep", "'await durable.sleep(seconds)'")
        checked_seconds(seconds)
        frame = self._frame()
        if frame is None or frame.run is None or frame.step_name is not None:
            time.sleep(seconds)
        else:
            self._call(lambda _: self._engine.sleep(seconds))

    def find_workflow(self, workflow_id: str) -> None:
        """Raise ``WorkflowNotFoundError`` unless there is a workflow with this id."""
        _refuse_event_loop("retrieve_workflow", "'await durable.retrieve_workflow(id)'")
        self._call(lambda _: self._engine.find_workflow(workflow_id))

    def workflow_status(self, workflow_id: str) -> WorkflowStatus:
        """Return a workflow's status; recorded where a workflow asks."""
        _refuse_event_loop("get_status", "'await durable.retrieve_workflow(id)'")
        return self._call(lambda _: self._engine.workflow_status(workflow_id))

    def workflow_result(self, workflow_id: str, timeout_seconds: float | None) -> Any:
        """Wait for a workflow's outcome; recorded where a workflow asks."""
        _refuse_event_loop("get_result", "'await durable.retrieve_workflow(id)'")
        return self._call(lambda _: self._engine.workflow_result(workflow_id, timeout_seconds))

    def cancel_workflow(self, workflow_id: str) -> bool:
        """Cancel a workflow, wherever it runs; recorded where a workflow asks."""
        _refuse_event_loop("cancel_workflow", "'await durable.cancel_workflow(id)'")
        return self._call(lambda _: self._engine.cancel_workflow(workflow_id))

    def _wait(
        self,
        definition: DefinitionT,
        call: Callable[[DefinitionT], Coroutine[Any, Any, Any]],
    ) -> Any:
        """Make a call whose function, if it is not async, runs in this thread."""
        return self._call(lambda thread: call(definition.called_in(thread)))

    def _call(
        self, begin: Callable[[ThreadBridge[ResultT]], Coroutine[Any, Any, ResultT]]
    ) -> ResultT:
        frame = self._frame()
        run = frame.run if frame is not None else None
        engine = self._engine
        engine.running()
        loop = run.loop if run is not None else engine.home.get()
        thread: ThreadBridge[ResultT] = ThreadBridge(loop, engine.registry.threads)
        try:
            return thread.call(lambda: begin(thread))
        except LoopEndedError:
            workflow_id = run.workflow_id if run is not None else UNKNOWN
            error = WorkflowInterruptedError(workflow_id, LOOP_ENDED)
            raise (error if run is None else run.stop(error, retry_here=True)) from None

    def _frame(self) -> Frame | None:
        """Return where the current code runs.

        Raises:
            RunStopped: It runs still although its run was stopped: no thread can be.
        """
        frame = current_frame.get()
        if (
            frame is not None
            and frame.run is not None
            and frame.run.stopped is not None
            and frame.services.registry is self._engine.registry
        ):
            raise RunStopped
        return self._engine.frame()


def _refuse_event_loop(name: str, instead: str) -> None:
    """Refuse to block the event loop that runs in the current thread.

    Raises:
        DurableUsageError: One does.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    msg = f"{name!r} would block the event loop that runs in this thread; use {instead}"
    raise DurableUsageError(msg)
