"""Calls of workflows with options."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from asgi_durable.engine.engine import Engine
from asgi_durable.engine.runs.call import WorkflowOptions
from asgi_durable.engine.workflows.handle import WorkflowHandle
from asgi_durable.verbs.decorators import called_workflow

__all__ = ["WorkflowCalls"]

P = ParamSpec("P")
R = TypeVar("R")


class WorkflowCalls:
    """Calls of workflows, all with the same options; see :meth:`Durable.options`.

    Attributes:
        engine: What runs them.
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
        """Run a workflow and return its result; the same as calling it.

        A ``def`` function runs in a thread of the engine's, so the event loop goes on.
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
        """Start a workflow in the background; return its handle once the start is durable."""
        definition, args = called_workflow(self.engine, function, args)
        started = self.engine.start_workflow(definition, args, kwargs, self._options)
        return self._handle(started)

    async def _handle(self, started: Coroutine[Any, Any, str]) -> WorkflowHandle[Any]:
        return WorkflowHandle(self.engine, await started)
