"""Handles of workflows: their status and their outcome."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from asgi_durable.codec.values import Values
from asgi_durable.engine.process.registry import Registry
from asgi_durable.errors import DecodeError, RemoteError, WorkflowCancelledError
from asgi_durable.storage.records import WorkflowRecord, WorkflowState

__all__ = ["WorkflowHandle", "WorkflowStatus", "workflow_status"]

ResultT_co = TypeVar("ResultT_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowStatus:
    """The state of a workflow, its arguments and its outcome.

    Attributes:
        status: ``PENDING`` until it is ``SUCCESS``, ``ERROR``, ``CANCELLED`` or
            ``RETRIES_EXCEEDED``; ``SUSPENDED`` while it only sleeps.
        input: Its arguments by name; ``None`` for a request.
        output: Its result, once it is a ``SUCCESS``.
        error: The error that it raised, once it is an ``ERROR``; the reason, once it is
            ``RETRIES_EXCEEDED``; a ``WorkflowCancelledError`` once it is ``CANCELLED``.
        attempts: Executions so far: 1, and one more for each time it was resumed.
    """

    workflow_id: str
    name: str
    status: WorkflowState
    input: Any
    output: Any
    error: BaseException | None
    attempts: int
    request_id: str | None
    parent_id: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


class HandleSource(Protocol):
    """The engine, as a handle sees it."""

    def workflow_status(self, workflow_id: str) -> Awaitable[WorkflowStatus]:
        """Return a workflow's status."""

    def workflow_result(self, workflow_id: str, timeout_seconds: float | None) -> Awaitable[Any]:
        """Wait for a workflow's outcome."""

    def cancel_workflow(self, workflow_id: str) -> Awaitable[bool]:
        """Cancel a workflow."""


class WorkflowHandle(Generic[ResultT_co]):
    """A workflow that was started, in this process or another; it may be finished.

    Attributes:
        workflow_id: The workflow's id.
    """

    def __init__(self, source: HandleSource, workflow_id: str) -> None:
        self._source = source
        self.workflow_id = workflow_id

    def __repr__(self) -> str:
        """Name the workflow."""
        return f"WorkflowHandle({self.workflow_id!r})"

    def get_status(self) -> Awaitable[WorkflowStatus]:
        """Return the workflow's current status; recorded if a workflow asks.

        Raises:
            WorkflowNotFoundError: Its row was deleted.
        """
        return self._source.workflow_status(self.workflow_id)

    def get_result(self, timeout: float | None = None) -> Awaitable[ResultT_co]:
        """Wait until the workflow is finished; return its result or raise its error.

        Args:
            timeout: Longest wait in seconds; the workflow continues after it.

        Raises:
            TimeoutError: The workflow did not finish in time.
            WorkflowCancelledError: The workflow was cancelled.
            WorkflowNotFoundError: Its row was deleted.
        """
        return self._source.workflow_result(self.workflow_id, timeout)

    def cancel(self) -> Awaitable[bool]:
        """Cancel the workflow, in whatever process it runs; see :meth:`Durable.cancel_workflow`."""
        return self._source.cancel_workflow(self.workflow_id)


def workflow_status(
    record: WorkflowRecord, registry: Registry, *, is_asleep: bool
) -> WorkflowStatus:
    """Return the status of a row. Values that cannot be decoded are returned as text."""
    values, definition = registry.values, registry.find_workflow(record.name)
    error = _decoded(values, record.error, values.read_error)
    if isinstance(error, str):
        error = RemoteError("unknown:Unknown", error)
    if record.state is WorkflowState.CANCELLED:
        error = WorkflowCancelledError(record.workflow_id)
    read_input: Callable[[bytes], Any] = values.read
    read_output: Callable[[bytes], Any] = values.read
    if definition is not None:
        read_input, read_output = definition.values.read_arguments, definition.values.read_result
    return WorkflowStatus(
        workflow_id=record.workflow_id,
        name=record.name,
        status=WorkflowState.SUSPENDED if is_asleep else record.state,
        input=None if record.is_request else _decoded(values, record.input, read_input),
        output=_decoded(values, record.output, read_output),
        error=error,
        attempts=record.attempts,
        request_id=record.request_id,
        parent_id=record.parent_id,
        created_at=_time(record.created_at_us),
        updated_at=_time(record.updated_at_us),
    )


def _decoded(values: Values, data: bytes | None, read: Callable[[bytes], Any]) -> Any:
    if data is None:
        return None
    try:
        return read(data)
    except DecodeError:
        # A person can read it at least: the default codec writes JSON.
        return values.text(data)


def _time(microseconds: int) -> datetime.datetime:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return epoch + datetime.timedelta(microseconds=microseconds)
