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
from asgi_durable.verbs.decorators import called_step, called_workflow

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Blocking", "BlockingCalls", "BlockingWorkflowHandle"]

P = ParamSpec("P")
R = TypeVar("R")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class BlockingWorkflowHandle(Generic[ResultT_co]):
    """A workflow that may be running, here or elsewhere, or be over."""

    def __init__(self, calls: BlockingEngine, workflow_id: str) -> None:
        self._calls = calls
        self.workflow_id = workflow_id

    def __repr__(self) -> str:
        """Name the workflow."""
        return f"BlockingWorkflowHandle({self.workflow_id!r})"

    def get_status(self) -> WorkflowStatus:
        """Return what is known of the workflow now; see :meth:`WorkflowHandle.get_status`."""
        return self._calls.workflow_status(self.workflow_id)

    def get_result(self, timeout: float | None = None) -> ResultT_co:
        """Wait until the workflow is over; see :meth:`WorkflowHandle.get_result`."""
        return cast("ResultT_co", self._calls.workflow_result(self.workflow_id, timeout))

    def cancel(self) -> bool:
        """Cancel the workflow, wherever it runs; see :meth:`Durable.cancel_workflow`."""
        return self._calls.cancel_workflow(self.workflow_id)


class BlockingCalls:
    """Calls of workflows, all with the same options; see :meth:`Blocking.options`."""

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
        """Run a workflow and return its result; a ``def`` function in this thread."""
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
        """Start a workflow in the background; return its handle once the start is durable."""
        definition, args = called_workflow(self._engine, function, args)
        workflow_id = self._calls.start_workflow(definition, args, kwargs, self._options)
        return BlockingWorkflowHandle(self._calls, workflow_id)


class Blocking(BlockingCalls):
    """What :class:`Durable` does for code that is not async: each verb waits in its thread.

    Not on an event loop's thread, which would stand still: there each raises
    ``DurableUsageError``.
    """

    def __init__(self, engine: Engine, calls: BlockingEngine) -> None:
        super().__init__(engine, calls, WorkflowOptions())

    def options(
        self,
        *,
        workflow_id: str | None = None,
        on_conflict: Literal["raise", "attach"] = "raise",
    ) -> BlockingCalls:
        """Return the workflow calls with options; see :meth:`Durable.options`."""
        options = WorkflowOptions(workflow_id=workflow_id, on_conflict=on_conflict)
        return BlockingCalls(self._engine, self._calls, options)

    def retrieve_workflow(self, workflow_id: str) -> BlockingWorkflowHandle[Any]:
        """Return the handle of a workflow that exists.

        Raises:
            WorkflowNotFoundError: No workflow has the id.
        """
        self._calls.find_workflow(workflow_id)
        return BlockingWorkflowHandle(self._calls, workflow_id)

    def cancel_workflow(self, workflow_id: str) -> bool:
        """Cancel a workflow or a keyed request; see :meth:`Durable.cancel_workflow`."""
        return self._calls.cancel_workflow(workflow_id)

    @overload
    def background(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> str: ...

    @overload
    def background(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> str: ...

    def background(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """Start a workflow once its caller has ended well; see :meth:`Durable.background`."""
        definition, args = called_workflow(self._engine, function, args)
        return self._calls.background(definition, args, kwargs)

    @overload
    def run_step(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    def run_step(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...

    def run_step(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a step or a transaction; an ``async def`` function runs on the event loop."""
        definition, args = called_step(self._engine, function, args)
        if isinstance(definition, StepDefinition):
            return self._calls.call_step(definition, args, kwargs)
        return self._calls.call_transaction(definition, args, kwargs)

    def sleep(self, seconds: float) -> None:
        """Sleep; inside a workflow or a keyed request durably. See :meth:`Durable.sleep`."""
        self._calls.sleep(seconds)

    @property
    def session(self) -> Session:
        """The current transaction's session in a ``def`` function; the same, by its type.

        Raises:
            DurableUsageError: The current code is in no transaction.
        """
        return cast("Session", current_session(self._engine.frame()))
