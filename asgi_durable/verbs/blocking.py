"""The verbs for code that is not async, in a thread in which no event loop runs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from asgi_durable.engine.blocking_engine import BlockingEngine
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.process.definitions import StepDefinition
from asgi_durable.engine.runs.call import WorkflowOptions
from asgi_durable.engine.runs.frame import current_session
from asgi_durable.engine.workflows.handle import WorkflowStatus
from asgi_durable.verbs import table
from asgi_durable.verbs.decorators import called_step, called_workflow

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Blocking", "BlockingCalls", "BlockingWorkflowHandle"]

P = ParamSpec("P")
R = TypeVar("R")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class BlockingWorkflowHandle(Generic[ResultT_co]):
    """A workflow that was started, in this process or another; it may be finished.

    Each method blocks its thread; see :class:`WorkflowHandle` for the async methods.

    Attributes:
        workflow_id: The workflow's id.
    """

    def __init__(self, calls: BlockingEngine, workflow_id: str) -> None:
        self._calls = calls
        self.workflow_id = workflow_id

    def __repr__(self) -> str:
        """Name the workflow."""
        return f"BlockingWorkflowHandle({self.workflow_id!r})"

    def get_status(self) -> WorkflowStatus:
        """Return the workflow's current status; recorded if a workflow asks.

        Raises:
            WorkflowNotFoundError: Its row was deleted.
        """
        return self._calls.call(table.GET_STATUS, self.workflow_id)

    def get_result(self, timeout: float | None = None) -> ResultT_co:
        """Wait until the workflow is finished; return its result or raise its error.

        Args:
            timeout: Longest wait in seconds; the workflow continues after it.

        Raises:
            TimeoutError: The workflow did not finish in time.
            WorkflowCancelledError: The workflow was cancelled.
            WorkflowNotFoundError: Its row was deleted.
        """
        result = self._calls.call(table.GET_RESULT, self.workflow_id, timeout)
        return cast("ResultT_co", result)

    def cancel(self) -> bool:
        """Cancel the workflow, in whatever process it runs; see :meth:`Durable.cancel_workflow`."""
        return self._calls.call(table.CANCEL, self.workflow_id)


class BlockingCalls:
    """Calls of workflows that all have the same options; see :meth:`Blocking.options`."""

    def __init__(self, engine: Engine, calls: BlockingEngine, options: WorkflowOptions) -> None:
        self._engine = engine
        self._calls = calls
        self._options = options

    @overload
    def run_workflow(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    def run_workflow(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...

    def run_workflow(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a workflow and return its result.

        A ``def`` function runs in this thread, an ``async def`` function on the event loop.

        Raises:
            DurableUsageError: The function is not a workflow of this ``Durable``, or an event
                loop runs in this thread.
        """
        definition, args = called_workflow(self._engine, function, args)
        return self._calls.call_workflow(definition, args, kwargs, self._options)

    @overload
    def start_workflow(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> BlockingWorkflowHandle[R]: ...

    @overload
    def start_workflow(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> BlockingWorkflowHandle[R]: ...

    def start_workflow(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> BlockingWorkflowHandle[Any]:
        """Start a workflow in the background; return its handle once its start is durable."""
        definition, args = called_workflow(self._engine, function, args)
        workflow_id = self._calls.call(
            table.START_WORKFLOW, definition, args, kwargs, self._options
        )
        return BlockingWorkflowHandle(self._calls, workflow_id)


class Blocking(BlockingCalls):
    """The verbs of :class:`Durable` for code that is not async: each blocks its thread.

    On a thread in which an event loop runs, each raises ``DurableUsageError``, as the event loop
    would stand still.

    Example::

        with durable:
            order = durable.blocking.run_workflow(checkout, 17)
    """

    def __init__(self, engine: Engine, calls: BlockingEngine) -> None:
        super().__init__(engine, calls, WorkflowOptions())

    def options(
        self,
        *,
        workflow_id: str | None = None,
        on_conflict: Literal["raise", "attach"] = "raise",
    ) -> BlockingCalls:
        """Return the calls of workflows with options; see :meth:`Durable.options`."""
        options = WorkflowOptions(workflow_id=workflow_id, on_conflict=on_conflict)
        return BlockingCalls(self._engine, self._calls, options)

    @overload
    def background(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> str: ...

    @overload
    def background(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> str: ...

    def background(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """Start a workflow once its caller has completed; see :meth:`Durable.background`."""
        definition, args = called_workflow(self._engine, function, args)
        return self._calls.call(table.BACKGROUND, definition, args, kwargs)

    @overload
    def run_step(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    def run_step(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...

    def run_step(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a step or a transaction and return its result.

        A ``def`` function runs in this thread, an ``async def`` function on the event loop.

        Raises:
            DurableUsageError: The function is no step or transaction of this ``Durable``, or an
                event loop runs in this thread.
        """
        definition, args = called_step(self._engine, function, args)
        if isinstance(definition, StepDefinition):
            return self._calls.call_step(definition, args, kwargs)
        return self._calls.call_transaction(definition, args, kwargs)

    def sleep(self, seconds: float) -> None:
        """Sleep, durably inside a workflow or a keyed request; see :meth:`Durable.sleep`."""
        self._calls.sleep(seconds)

    def retrieve_workflow(self, workflow_id: str) -> BlockingWorkflowHandle[Any]:
        """Return the handle of a workflow that exists.

        Raises:
            WorkflowNotFoundError: No workflow has the id.
        """
        self._calls.call(table.RETRIEVE_WORKFLOW, workflow_id)
        return BlockingWorkflowHandle(self._calls, workflow_id)

    def cancel_workflow(self, workflow_id: str) -> bool:
        """Cancel a workflow or a keyed request; see :meth:`Durable.cancel_workflow`."""
        return self._calls.call(table.CANCEL_WORKFLOW, workflow_id)

    @property
    def session(self) -> Session:
        """The session of the current transaction, typed for ``def`` functions.

        Raises:
            DurableUsageError: The current code is not in a transaction.
        """
        return cast("Session", current_session(self._engine.frame()))
