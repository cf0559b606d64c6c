"""A span of the whole life of a workflow."""

from __future__ import annotations

from functools import partial

from opentelemetry.trace import StatusCode, Tracer

from asgi_durable.otel.roots import Before
from asgi_durable.otel.trace_context import parse_trace_context
from asgi_durable.otel.work import attributes_of
from asgi_durable.storage.records import WorkflowRecord, WorkflowState

__all__ = ["make_summary"]


def make_summary(tracer: Tracer, workflow: WorkflowRecord, outcome: str) -> None:
    """Make the span of a workflow that has just ended, from its start to now.

    It is recorded if the workflow's start was.
    """
    attributes = attributes_of(workflow)
    attributes["durable.executions"] = attributes.pop("durable.run")
    attributes["durable.outcome"] = outcome
    origin = Before(parse_trace_context(workflow.trace_context), None)
    start_span = partial(
        tracer.start_span,
        f"durable.workflow {workflow.name}",
        attributes=attributes,
        start_time=workflow.created_at_us * 1000,
    )
    span = origin.start(start_span)
    if outcome != WorkflowState.SUCCESS:
        span.set_status(StatusCode.ERROR)
    span.end()
