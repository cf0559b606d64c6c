"""Calls of workflows with options."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from asgi_durable.decorating import workflow_definition
from asgi_durable.engine.call import WorkflowOptions
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.handle import WorkflowHandle

__all__ = ["WorkflowCalls"]

P = ParamSpec("P")
R = TypeVar("R")


class WorkflowCalls:
    """Calls of workflows, all with the same options; see :meth:`Durable.options`."""

    def __init__(self, engine: Engine, options: WorkflowOptions) -> None:
        self._engine = engine
        self._options = options

    def run_workflow(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run a workflow and return its result."""
        definition = workflow_definition(self._engine, function)
        return self._engine.call_workflow(definition, args, kwargs, self._options)

    def start_workflow(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, WorkflowHandle[R]]:
        """Start a workflow in the background; return its handle once the start is durable."""
        definition = workflow_definition(self._engine, function)
        started = self._engine.start_workflow(definition, args, kwargs, self._options)
        return self._handle(started)

    async def _handle(self, started: Coroutine[Any, Any, str]) -> WorkflowHandle[Any]:
        return WorkflowHandle(self._engine, await started)
