"""The verbs of the library: application code can call each of them async and blocking.

A verb is an entry here, a method of the engine, and a typed method with a docstring on each side,
so that editors show its signature. The test of this table compares the sides: the names,
parameters and summaries are equal.
"""

from __future__ import annotations

from typing import Any

from asgi_durable.engine.blocking_engine import Verb
from asgi_durable.engine.engine import Engine

__all__ = [
    "BACKGROUND",
    "CANCEL",
    "CANCEL_WORKFLOW",
    "GET_RESULT",
    "GET_STATUS",
    "HANDLE_VERBS",
    "RETRIEVE_WORKFLOW",
    "START_WORKFLOW",
    "VERBS",
]

_HANDLE = "await durable.retrieve_workflow(id)"

RUN_WORKFLOW = Verb("run_workflow", Engine.call_workflow)
START_WORKFLOW = Verb("start_workflow", Engine.start_workflow)
BACKGROUND = Verb("background", Engine.background)
RUN_STEP = Verb("run_step", Engine.call_step)
SLEEP = Verb("sleep", Engine.sleep)
RETRIEVE_WORKFLOW = Verb("retrieve_workflow", Engine.find_workflow)
CANCEL_WORKFLOW = Verb("cancel_workflow", Engine.cancel_workflow)

# Of ``Durable`` and of ``durable.blocking``.
VERBS: tuple[Verb[..., Any], ...] = (
    RUN_WORKFLOW,
    START_WORKFLOW,
    BACKGROUND,
    RUN_STEP,
    SLEEP,
    RETRIEVE_WORKFLOW,
    CANCEL_WORKFLOW,
)

GET_STATUS = Verb("get_status", Engine.workflow_status, _HANDLE)
GET_RESULT = Verb("get_result", Engine.workflow_result, _HANDLE)
CANCEL = Verb("cancel", Engine.cancel_workflow, _HANDLE)

# Of ``WorkflowHandle`` and of ``BlockingWorkflowHandle``.
HANDLE_VERBS: tuple[Verb[..., Any], ...] = (GET_STATUS, GET_RESULT, CANCEL)
