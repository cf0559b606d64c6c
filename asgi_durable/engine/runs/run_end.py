"""How a run can end: with the workflow's outcome, or interrupted."""

from __future__ import annotations

from asgi_durable.engine.stopping import Interrupted
from asgi_durable.errors import WorkflowCancelledError
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.storage.records import WorkflowRecord, WorkflowState

__all__ = ["Completed", "RunEnd", "completed", "raise_if_cancelled"]


@fast_dataclass()
class Completed:
    """A workflow's outcome, encoded.

    Attributes:
        name: The name of the workflow's function.
    """

    name: str
    state: WorkflowState
    output: bytes | None
    error: bytes | None


RunEnd = Completed | Interrupted


def completed(workflow: WorkflowRecord) -> Completed:
    """Return the outcome of a workflow that has ended."""
    return Completed(workflow.name, workflow.state, workflow.output, workflow.error)


def raise_if_cancelled(ending: Completed, workflow_id: str) -> None:
    """Raise ``WorkflowCancelledError`` if the workflow was cancelled."""
    if ending.state is WorkflowState.CANCELLED:
        raise WorkflowCancelledError(workflow_id)
