"""The engine for code that is not async: each call blocks its thread until it has a result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from asgi_durable.concurrency.thread_bridge import LoopEndedError, ThreadBridge
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.process.definitions import (
    Definition,
    StepDefinition,
    TransactionDefinition,
    WorkflowDefinition,
)
from asgi_durable.engine.runs.call import WorkflowOptions
from asgi_durable.engine.runs.frame import Frame, current_frame, enter_event_loop
from asgi_durable.engine.steps.sleep import checked_seconds
from asgi_durable.engine.stopping import RunStopped
from asgi_durable.errors import DurableUsageError, WorkflowInterruptedError

__all__ = ["BlockingEngine", "Verb"]

P = ParamSpec("P")
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)
DefinitionT = TypeVar("DefinitionT", bound=Definition)

LOOP_ENDED = "its event loop ended"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verb(Generic[P, ResultT_co]):
    """A verb of the library: application code can call it async and blocking.

    Attributes:
        name: The name of its method on both sides, for example ``"sleep"``.
        method: The engine's method that does the work.
        in_async_code: How async code calls it, for the error of a blocking call there; by
            default ``await durable.<name>(…)``.
    """

    name: str
    method: Callable[Concatenate[Engine, P], Coroutine[Any, Any, ResultT_co]]
    in_async_code: str = ""


class BlockingEngine:
    """An engine's calls for threads in which no event loop runs.

    The call itself runs on the engine's event loop with the thread's context variables, so it
    has the same place in the step log, and follows the same rules, as a call of async code.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # Life cycle

    def start(self) -> None:
        """Start the engine on an event loop of its own, and resume interrupted workflows.

        Raises:
            StorageError: The database cannot be used; the message names it.
            DurableUsageError: The parent process has started the engine.
        """
        _refuse_event_loop("start", "async with durable:")
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

    def call(self, verb: Verb[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
        """Call a verb and return its result.

        Raises:
            DurableUsageError: An event loop runs in this thread.
        """
        _refuse_event_loop(verb.name, verb.in_async_code or f"await durable.{verb.name}(…)")
        return self._call(lambda _: verb.method(self._engine, *args, **kwargs))

    def call_step(
        self, definition: StepDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a step: recorded between the steps of a run, a plain call elsewhere."""
        frame = self._frame()
        if not definition.is_async and (frame is None or frame.step_name is not None):
            return definition.call_decorated(*args, **kwargs)
        _refuse_event_loop(definition.name, "await durable.run_step(fn, …)")
        return self._call_in_this_thread(
            definition,
            lambda definition: self._engine.call_step(definition, args, kwargs),
        )

    def call_transaction(
        self, definition: TransactionDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a transaction: recorded between the steps of a run, a plain one elsewhere."""
        _refuse_event_loop(definition.name, "await durable.run_step(fn, …)")
        return self._call_in_this_thread(
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
        _refuse_event_loop(definition.name, "await durable.run_workflow(fn, …)")
        return self._call_in_this_thread(
            definition,
            lambda definition: self._engine.call_workflow(definition, args, kwargs, options),
        )

    def sleep(self, seconds: float) -> None:
        """Sleep: recorded between the steps of a run, a plain sleep elsewhere."""
        _refuse_event_loop("sleep", "await durable.sleep(seconds)")
        checked_seconds(seconds)
        frame = self._frame()
        if frame is None or frame.run is None or frame.step_name is not None:
            time.sleep(seconds)
        else:
            self._call(lambda _: self._engine.sleep(seconds))

    def _call_in_this_thread(
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

        async def on_event_loop() -> ResultT:
            enter_event_loop()
            return await begin(thread)

        try:
            return thread.call(on_event_loop)
        except LoopEndedError:
            workflow_id = run.workflow_id if run is not None else UNKNOWN
            error = WorkflowInterruptedError(workflow_id, LOOP_ENDED)
            raise (error if run is None else run.stop(error, retry_here=True)) from None

    def _frame(self) -> Frame | None:
        """Return where the current code runs.

        Raises:
            RunStopped: Its run was stopped; the code still runs, as no thread can be stopped.
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


def _refuse_event_loop(name: str, in_async_code: str) -> None:
    """Refuse to block the event loop that runs in the current thread.

    Raises:
        DurableUsageError: An event loop runs in it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    msg = f"{name!r} would block the event loop that runs in this thread; use {in_async_code!r}"
    raise DurableUsageError(msg)
