"""The verbs for async code: each returns a coroutine to await."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Literal, ParamSpec, TypeVar, overload

from asgi_durable.engine.engine import Engine
from asgi_durable.engine.process.definitions import StepDefinition
from asgi_durable.engine.runs.call import WorkflowOptions
from asgi_durable.engine.workflows.handle import WorkflowHandle
from asgi_durable.verbs.decorators import called_step, called_workflow

__all__ = ["AwaitableVerbs", "WorkflowCalls"]

P = ParamSpec("P")
R = TypeVar("R")


class WorkflowCalls:
    """Calls of workflows that all have the same options; see :meth:`Durable.options`.

    Attributes:
        engine: Runs the workflows.
    """

    def __init__(self, engine: Engine, options: WorkflowOptions) -> None:
        self.engine = engine
        self._options = options

    @overload
    def run_workflow(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def run_workflow(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    def run_workflow(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Run a workflow and return its result.

        For an ``async def`` function it is the same as calling it. A ``def`` function runs in a
        thread of the engine, so the event loop stays free.

        Raises:
            DurableUsageError: The function is not a workflow of this ``Durable``.
        """
        definition, args = called_workflow(self.engine, function, args)
        return self.engine.call_workflow(definition, args, kwargs, self._options)

    @overload
    def start_workflow(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, WorkflowHandle[R]]: ...

    @overload
    def start_workflow(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, WorkflowHandle[R]]: ...

    def start_workflow(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, WorkflowHandle[Any]]:
        """Start a workflow in the background; return its handle once its start is durable.

        Example::

            handle = await durable.start_workflow(checkout, 17)
            order = await handle.get_result(timeout=30)

        Raises:
            DurableUsageError: The function is not a workflow of this ``Durable``.
        """
        definition, args = called_workflow(self.engine, function, args)
        started = self.engine.start_workflow(definition, args, kwargs, self._options)
        return self._handle(started)

    async def _handle(self, started: Coroutine[Any, Any, str]) -> WorkflowHandle[Any]:
        return WorkflowHandle(self.engine, await started)


class AwaitableVerbs(WorkflowCalls):
    """The verbs of :class:`Durable`; ``durable.blocking`` has the same for ``def`` code."""

    def options(
        self,
        *,
        workflow_id: str | None = None,
        on_conflict: Literal["raise", "attach"] = "raise",
    ) -> WorkflowCalls:
        """Return the calls of workflows with options.

        Example::

            await durable.options(workflow_id="order-17").run_workflow(checkout, 17)

        Args:
            workflow_id: The workflow's id. If a workflow has it already, the call does not run
                another one but attaches to it.
            on_conflict: The reaction if the workflow with the id was called with other
                arguments: ``"raise"`` raises a ``WorkflowConflictError``, and ``"attach"``
                attaches to it all the same. The arguments of the function's parameters are
                compared, default values included.

        Raises:
            DurableUsageError: The id is empty, too long, not printable or reserved.
        """
        options = WorkflowOptions(workflow_id=workflow_id, on_conflict=on_conflict)
        return WorkflowCalls(self.engine, options)

    @overload
    def background(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, str]: ...

    @overload
    def background(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, str]: ...

    def background(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, str]:
        """Start a workflow once its caller has completed.

        It is a background task that is durable. The caller is a request with an idempotency key,
        or a workflow. The start is committed together with its response or result, so it costs
        no commit of its own. If the caller fails nothing is started, and the caller's retry
        starts the workflow. A stored response counts as completion, also that of a 4xx or a
        ``FinalError``. Outside of both, the workflow is started at once.

        Returns:
            The workflow's id; there is no workflow with it before the caller has completed.
        """
        definition, args = called_workflow(self.engine, function, args)
        return self.engine.background(definition, args, kwargs)

    @overload
    def run_step(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def run_step(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    def run_step(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call a step or a transaction and return its result.

        For an ``async def`` function it is the same as calling it. A ``def`` function runs in a
        thread of the engine, so the event loop stays free.

        Raises:
            DurableUsageError: The function is no step or transaction of this ``Durable``.
        """
        definition, args = called_step(self.engine, function, args)
        if isinstance(definition, StepDefinition):
            return self.engine.call_step(definition, args, kwargs)
        return self.engine.call_transaction(definition, args, kwargs)

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Sleep, durably inside a workflow or a keyed request.

        The time at which the sleep ends is recorded before it begins, by the wall clock. So after
        a restart only the rest is slept, and nothing if that time has passed. A stop does not wait
        for a sleeping workflow. Elsewhere, also inside a step, it is a plain sleep.

        Args:
            seconds: From 0 to a thousand years. A replay uses the recorded time, not this.

        Raises:
            DurableUsageError: The number is negative, infinite or too large.
        """
        return self.engine.sleep(seconds)

    async def retrieve_workflow(self, workflow_id: str) -> WorkflowHandle[Any]:
        """Return the handle of a workflow that exists.

        Raises:
            WorkflowNotFoundError: No workflow has the id.
        """
        await self.engine.find_workflow(workflow_id)
        return WorkflowHandle(self.engine, workflow_id)

    def cancel_workflow(self, workflow_id: str) -> Coroutine[Any, Any, bool]:
        """Cancel a workflow or a keyed request.

        It may run in any process. Once this returns, nothing more of the workflow is recorded or
        committed; all that was recorded stays. Its code gets ``asyncio.CancelledError`` where it
        waits; ``def`` code ends at its next step. In another process that may take a second or
        two. Workflows that it called are cancelled with it; workflows that it started continue.
        Code that waits for it gets ``WorkflowCancelledError``, and a retry of a cancelled request
        gets a 410 response.

        Returns:
            True if the workflow is cancelled, now or before; False if it has another outcome,
            which stands.

        Raises:
            WorkflowNotFoundError: No workflow has the id.
            StorageError: It is not known whether the workflow is cancelled; call again.
        """
        return self.engine.cancel_workflow(workflow_id)
