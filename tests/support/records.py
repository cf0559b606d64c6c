"""Rows for storage tests."""

from __future__ import annotations

from typing import Any

from asgi_durable.storage.records import (
    ResponseRecord,
    StepRecord,
    WorkflowRecord,
    WorkflowState,
)
from asgi_durable.storage.writes import FinishWorkflow, RecordStep

EXECUTOR = "executor-1"
OTHER = "executor-2"


def workflow(workflow_id: str = "w", **fields: Any) -> WorkflowRecord:
    """Return a function's workflow, pending."""
    values: dict[str, Any] = {
        "workflow_id": workflow_id,
        "name": "work",
        "state": WorkflowState.PENDING,
        "executor_id": EXECUTOR,
        "attempts": 1,
        "parent_id": None,
        "parent_step": None,
        "awaited": True,
        "request_id": "r1",
        "fingerprint": None,
        "input": b"{}",
        "output": None,
        "error": None,
        "created_at_us": 1,
        "updated_at_us": 1,
    }
    return WorkflowRecord(**values | fields)


def request(workflow_id: str = "r", **fields: Any) -> WorkflowRecord:
    """Return a request's workflow, pending."""
    return workflow(workflow_id, **{"fingerprint": "v1:aa", "input": None} | fields)


def step(
    workflow_id: str = "w",
    number: int = 0,
    *,
    output: bytes | None = b"1",
    error: bytes | None = None,
) -> StepRecord:
    """Return a finished step."""
    return StepRecord(
        workflow_id=workflow_id,
        step_number=number,
        name="step",
        digest=b"d" * 16,
        output=output,
        error=error,
        finished_at_us=2,
    )


def record(step: StepRecord, executor_id: str = EXECUTOR) -> RecordStep:
    """Return the write of a step."""
    return RecordStep(step, executor_id)


def success(workflow_id: str = "w", output: bytes = b"9", **fields: Any) -> FinishWorkflow:
    """Return the write of a workflow's success."""
    values: dict[str, Any] = {
        "workflow_id": workflow_id,
        "executor_id": EXECUTOR,
        "state": WorkflowState.SUCCESS,
        "output": output,
        "error": None,
        "finished_at_us": 3,
    }
    return FinishWorkflow(**values | fields)


def response(workflow_id: str = "r", body: bytes | None = b"body", **fields: Any) -> ResponseRecord:
    """Return a response."""
    values: dict[str, Any] = {
        "status_code": 201,
        "headers": b"[]",
        "body": body,
        "expires_at_us": 1000,
        "forgotten_at_us": 1000,
    }
    return ResponseRecord(workflow_id=workflow_id, **values | fields)
